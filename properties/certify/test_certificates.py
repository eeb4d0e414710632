"""The certifier says yes to what is exact, and says what it assumes."""

import copy
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import growproof
import pytest
import torch
from torch import Tensor, nn

from ..growers.known_good import BY_NAME as GOOD
from . import certificates
from . import command as certify
from .certificates import Certificate
from .command import FAMILIES, TINY, cases

Params = dict[str, Tensor]
TARGETS = {f: {c.name: dict(c.target) for c in cases() if c.family == f} for f in TINY}
LLAMA_ALL, STABLELM_ALL = TARGETS["llama"]["all"], TARGETS["stablelm"]["all"]


def judged(
    grower: Any, family: str, target: Mapping[str, int], **fields: Any
) -> Certificate:
    config = certify.config_of(family, FAMILIES[family] | fields)
    return certificates.certify(grower, config, target)


def edited(change: Callable[[Any, Any], Any], **options: Any) -> Any:
    """growproof.grow, and then change(grown, old) in place."""

    def grow(old: Any, target: Mapping[str, int]) -> Any:
        new = growproof.grow(old, target, **options)
        with torch.no_grad():
            return change(new, old) or new

    return grow


def params(model: Any, pattern: str) -> Params:
    found = {n: p for n, p in model.named_parameters() if re.search(pattern, n)}
    assert found, pattern
    return found


def times(**factors: float | Callable[[Any, Any], float]) -> Any:
    """Parameters whose names contain these words, times something."""

    def change(new: Any, old: Any) -> None:
        for pattern, by in factors.items():
            for p in params(new, pattern).values():
                p *= by(new, old) if callable(by) else by

    return edited(change)


def root(name: str) -> Callable[[Any, Any], float]:
    """√ of the ratio of a size, new to old."""
    return lambda new, old: math.sqrt(
        getattr(new.config, name) / getattr(old.config, name)
    )


# ------------------------------------------------------------------ what is exact


@pytest.mark.parametrize("case", cases(), ids=lambda c: f"{c.family}, {c.name}")
def test_every_family_and_axis_is_certified(case: Any) -> None:
    config = certify.config_of(case.family, case.fields)
    found = certificates.certify(growproof.grow, config, case.target)
    assert found.verdict == "certified", found.reason
    # a LayerNorm bias gives new tokens rows that are no multiples of old entries
    silent = case.target.get("vocab_size", 11) - 11
    unknown = silent * case.fields["hidden_size"] if case.family == "stablelm" else 0
    assert found.entries["unrecognised"] == unknown
    assert found.error is not None
    assert found.error < -100
    assert len(found.runs) == 7


@pytest.mark.parametrize("norm", ["scaled", "centred", "masked"])
@pytest.mark.parametrize("family", ["llama", "stablelm"])
def test_every_exact_policy_is_certified(norm: str, family: str) -> None:
    grower = edited(
        lambda new, old: None, norm=norm, depth="interleave", fill="trainable"
    )
    found = judged(grower, family, TARGETS[family]["all"])
    inexact = {("scaled", "stablelm"), ("centred", "llama")}
    assert found.verdict == ("refused" if (norm, family) in inexact else "certified")


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("axis", ["head_dim", "all"])
def test_qk_layernorm_is_certified(parallel: bool, axis: str) -> None:
    fields = {"qk_layernorm": True, "use_parallel_residual": parallel}
    found = judged(growproof.grow, "stablelm", TARGETS["stablelm"][axis], **fields)
    assert found.verdict == "certified", found.reason


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
def test_surviving_rope_types_are_certified(rope: dict[str, Any]) -> None:
    found = judged(growproof.grow, "llama", LLAMA_ALL, rope_parameters=rope)
    assert found.verdict == "certified", found.reason


def fitted(name: str, grower: Any) -> Certificate:
    """The certificate of a grower on a built-in way of fitting a Llama to hardware."""
    case = next(c for c in cases() if (c.family, c.name) == ("llama", name))
    config = certify.config_of(case.family, case.fields)
    return certificates.certify(grower, config, case.target)


@pytest.mark.parametrize(
    ("grower", "name"),
    [("dealt_in_turn", "all, dealt"), ("new_tokens_drawn", "all, vocabulary")],
)
def test_other_ways_of_fitting_are_certified(grower: str, name: str) -> None:
    found = fitted(name, GOOD[grower])
    assert found.verdict == "certified", found.reason


def cancelling_noise(new: Any, old: Any) -> None:
    """Two new MLP units that undo each other."""
    f, d = old.config.intermediate_size, old.config.hidden_size
    mlp = new.model.layers[0].mlp
    for part in (mlp.gate_proj, mlp.up_proj):
        part.weight[f : f + 2, :d] = 0.5678
    mlp.down_proj.weight[0, f : f + 2] = torch.tensor([0.2345, -0.2345])


def alias(new: Any, old: Any) -> None:
    new.config.hidden_act = "swish"


def untied_twin(new: Any, old: Any) -> None:
    new.config.tie_word_embeddings = False
    new.lm_head.weight = nn.Parameter(new.model.embed_tokens.weight.clone())


EXACT = {
    "q scale on k": times(
        q_proj=lambda n, o: 1 / root("head_dim")(n, o), k_proj=root("head_dim")
    ),
    "q scale split": times(
        q_proj=lambda n, o: root("head_dim")(n, o) ** -0.5,
        k_proj=lambda n, o: root("head_dim")(n, o) ** 0.5,
    ),
    "readers carry the norms' scale": times(
        **{"norm": root("hidden_size")},
        **{
            r"([qkv]|gate|up)_proj\.weight|lm_head": lambda n, o: (
                1 / root("hidden_size")(n, o)
            )
        },
    ),
    "noise that cancels": edited(cancelling_noise),
    "an alias of the activation": edited(alias),
}


@pytest.mark.parametrize("name", EXACT)
def test_other_exact_growers_are_certified(name: str) -> None:
    found = judged(EXACT[name], "llama", LLAMA_ALL)
    assert found.verdict == "certified", found.reason


def test_an_untied_twin_is_certified() -> None:
    found = judged(edited(untied_twin), "llama", LLAMA_ALL, tie_word_embeddings=True)
    assert found.verdict == "certified", found.reason


def cloned(old: Any, target: Mapping[str, int]) -> Any:
    """HyperCloning: every axis twice over, and readers halved, so that sums are kept."""
    config = copy.deepcopy(old.config)
    for name, size in target.items():
        setattr(config, name, size)
    new = type(old)(config).double().eval()
    with torch.no_grad():
        for name, p in new.named_parameters():
            x = dict(old.named_parameters())[name]
            for dim in range(x.dim()):
                n = p.shape[dim] // x.shape[dim]
                x = torch.cat([x] * n, dim)
                reads = dim == 1 and "embed" not in name
                x = x / n if reads else x
            p.copy_(x)
    return new


@pytest.mark.parametrize("factor", [2, 3])
def test_cloning_is_certified(factor: int) -> None:
    target = {"hidden_size": 8, "num_attention_heads": 4, "intermediate_size": 6}
    target = {name: n * factor for name, n in target.items()}
    found = judged(cloned, "llama", target | {"num_key_value_heads": 2 * factor})
    assert found.verdict == "certified", found.reason


def parted(new: Any, old: Any) -> None:
    """Each old layer as two: one with its attention alone, one with its MLP alone."""
    whole = {n: p.clone() for n, p in new.named_parameters()}
    for name, p in params(new, r"layers\.\d").items():
        _, _, i, rest = name.split(".", 3)
        silent = "o_proj" if int(i) % 2 else "down_proj"
        x = whole[f"model.layers.{int(i) // 2}.{rest}"]
        p.copy_(x * 0 if silent in rest else x)


@pytest.mark.parametrize("parallel", [False, True])
def test_a_layer_may_be_parted_unless_its_halves_read_the_same(parallel: bool) -> None:
    fields = {"use_parallel_residual": parallel}
    found = judged(edited(parted), "stablelm", {"num_hidden_layers": 4}, **fields)
    assert found.verdict == ("refused" if parallel else "certified"), found.reason


def after(calls: int) -> Any:
    """The logits doubled after so many calls."""

    def change(new: Any, old: Any) -> None:
        count = [0]

        def hook(module: Any, inputs: Any, y: Tensor) -> Tensor:
            count[0] += 1
            return y * 2 if count[0] > calls else y

        new.lm_head.register_forward_hook(hook)

    return edited(change)


def test_new_tokens_may_be_silenced_by_their_logits() -> None:
    """−2¹⁵ for whatever is not suppressed: certified, and said to be seen, not proved."""

    def silent(new: Any, old: Any) -> None:
        new.generation_config.suppress_tokens = None
        new.lm_head.bias[-2:] = -(2.0**15)

    config = certify.config_of("phi", certify.FAMILIES["phi"])
    target = {"vocab_size": config.vocab_size + 2}
    found = certificates.certify(edited(silent), config, target)
    assert found.verdict == "certified", found.reason
    assert any("not suppressed" in said for said in found.assumed)


def through_a_file(model: Any, target: Mapping[str, int]) -> Any:
    """Saved and loaded, so that the config names another folder at each call."""
    grown = growproof.grow(model, target)
    with tempfile.TemporaryDirectory() as folder:
        grown.save_pretrained(folder)
        return type(grown).from_pretrained(folder, dtype=model.dtype).eval()


RIGHT: dict[str, tuple[Any, str, dict[str, int], dict[str, Any]]] = {
    "norms that add one": (growproof.grow, "gemma", {"hidden_size": 48}, {}),
    "dropout": (
        growproof.grow, "gemma2", {"hidden_size": 48}, {"attention_dropout": 0.1},
    ),
    "a router's noise": (
        growproof.grow, "mixtral", {"num_hidden_layers": 3},
        {"router_jitter_noise": 0.1},
    ),
    "through a file": (through_a_file, "granite", {"intermediate_size": 14}, {}),
    "tokens beyond the vocabulary": (
        growproof.grow, "llama", {"intermediate_size": 9},
        {"bos_token_id": 128001, "eos_token_id": 128009},
    ),
    "a family's own names": (growproof.grow, "gpt2", {"n_embd": 48, "n_layer": 3}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_unusual_models_are_certified(name: str) -> None:
    """What is special about them is read, and not left to chance or to an endless search."""
    grower, family, target, fields = RIGHT[name]
    config = certify.config_of(family, certify.FAMILIES[family] | fields)
    found = certificates.certify(grower, config, target)
    assert found.verdict == "certified", found.reason


# ------------------------------------------------------------------ neither


def rotated(new: Any, old: Any) -> None:
    """Exact, but by an orthogonal matrix of a seed: Σ q² = 1 is only so in floats."""
    d = new.config.hidden_size
    generator = torch.Generator().manual_seed(3)
    q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    norms = {n: p.clone() for n, p in params(new, r"norm\.weight").items()}
    for p in params(new, r"norm\.weight").values():
        p.fill_(1)
    for name, p in new.named_parameters():
        if "embed" in name:
            p.copy_(p @ q.T)
        elif re.search(r"(o|down)_proj", name):
            p.copy_(q @ p)
        elif p.dim() == 2:
            layer = name.rsplit(".", 3)[0]
            own = "input" if "attn" in name else "post_attention"
            key = (
                f"{layer}.{own}_layernorm.weight"
                if "layers" in name
                else "model.norm.weight"
            )
            p.copy_(p * norms[key] @ q.T)


def test_what_is_exact_in_floats_alone_is_undecided() -> None:
    found = judged(edited(rotated), "llama", LLAMA_ALL)
    assert found.verdict == "undecided"
    assert "differ over residues. In float64 they agree to" in found.reason
    assert "Not read as a form of the old weights: model." in found.reason
    assert found.witness["relative"] < 1e-12


def dynamic(config: Any) -> None:
    config.rope_parameters |= {"rope_type": "dynamic", "factor": 2.0}


def other_window(config: Any) -> None:
    config.sliding_window = 200


@pytest.mark.parametrize(
    ("family", "fields", "change", "name"),
    [
        ("llama", {}, dynamic, "rope_parameters"),
        ("mistral", {"sliding_window": 300}, other_window, "sliding_window"),
        ("mistral", {"sliding_window": None}, other_window, "sliding_window"),
    ],
)
def test_what_shows_beyond_all_runs_is_undecided(
    family: str, fields: dict[str, Any], change: Any, name: str
) -> None:
    """Only in the config, and from a length on that no run has."""

    def grow(model: Any, target: Mapping[str, int]) -> Any:
        grown = growproof.grow(model, target)
        change(grown.config)
        return type(model)(grown.config).double().eval()

    def loaded(model: Any, target: Mapping[str, int]) -> Any:
        new = grow(model, target)
        new.load_state_dict(growproof.grow(model, target).state_dict())
        return new

    found = judged(loaded, family, {"intermediate_size": 14}, **fields)
    assert found.verdict == "undecided", found.reason
    assert f"differ in {name}, which speaks of longer texts" in found.reason


def test_another_generation_config_is_told() -> None:
    def grow(model: Any, target: Mapping[str, int]) -> Any:
        grown = growproof.grow(model, target)
        grown.generation_config.eos_token_id = 3
        return grown

    found = judged(grow, "llama", {"intermediate_size": 14})
    assert any("differ in eos_token_id" in said for said in found.assumed)


def test_an_operation_without_residues_is_named() -> None:
    def sorted_lanes(new: Any, old: Any) -> None:
        new.model.norm.register_forward_hook(
            lambda m, i, y: y + 0 * torch.cumsum(y, -1)
        )

    found = judged(edited(sorted_lanes), "llama", LLAMA_ALL)
    assert found.verdict == "undecided"
    assert "aten::cumsum" in found.reason


def test_what_no_run_shows_is_in_the_certificate() -> None:
    """A model that counts to a thousand is certified, and the certificate says why."""
    found = judged(after(1000), "llama", LLAMA_ALL)
    assert found.verdict == "certified"
    assert any("count its calls" in said for said in found.assumed)


def test_a_declined_growth_is_neither() -> None:
    def grow(model: Any, target: Mapping[str, int]) -> Any:
        raise NotImplementedError("only multiples of eight")

    found = judged(grow, "llama", LLAMA_ALL)
    assert (found.verdict, "multiples of eight" in found.reason) == ("declined", True)
