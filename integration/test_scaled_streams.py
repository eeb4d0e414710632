"""A residual that is scaled or centred, a head that is tied: right pairs are accounted
for, and wrong ones, of which each was once called the same function, are not."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from growproof.verify import Side, verify
from growproof.verify.accounting import accounted
from safetensors.torch import save_file
from torch import Tensor

from .small import llama, of_family, saved, stored

WRITERS = r"embed_tokens\.|o_proj\.|(mlp\.c|down)_proj\."
LAST, LAST_BIAS = "model.norm.weight", "model.norm.bias"
Change = Callable[[str, Tensor], Tensor | None]


def changed(source: Path, change: Change, **config: Any) -> Path:
    """A copy of a checkpoint with other tensors (None: it goes) and config fields."""
    copy = Path(shutil.copytree(source, source.with_name("changed")))
    tensors = {n: change(n, x) for n, x in stored(source).items()}
    kept = {n: x.contiguous() for n, x in tensors.items() if x is not None}
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    fields = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(fields | config))
    return copy


def complete(source: Path, destination: Path) -> bool:
    """Whether every entry is accounted for: the same function for every input."""
    return accounted(Side.of(source), Side.of(destination)).complete


def doubled(**others: float) -> Change:
    """The stream times 2: what writes to it; and other tensors by their factors."""
    return lambda n, x: x * (2 if re.search(WRITERS, n) else others.get(n, 1.0))


@pytest.fixture
def layernorm(tmp_path: Path) -> Path:
    """A StarCoder2, tied, whose embedding has a mean."""
    model = of_family("starcoder2", tie_word_embeddings=True)
    with torch.no_grad():
        model.model.embed_tokens.weight += torch.randn(model.config.vocab_size, 1)
    return saved(model, tmp_path / "source")


@pytest.mark.parametrize(("factor", "right"), [(0.5, True), (1.0, False)])
def test_a_tied_heads_norm_has_its_bias_scaled(
    layernorm: Path, factor: float, right: bool
) -> None:
    """The stream times 2, the head with it: the last norm by half, its bias as well."""
    eps = 4 * json.loads((layernorm / "config.json").read_text())["norm_epsilon"]
    change = doubled(**{LAST: 0.5, LAST_BIAS: factor})
    assert complete(layernorm, changed(layernorm, change, norm_epsilon=eps)) == right


def test_a_tied_head_misses_the_mean_of_the_embedding(layernorm: Path) -> None:
    """Each writer centred, at the same width."""

    def centred(name: str, x: Tensor) -> Tensor:
        if not re.search(WRITERS, name):
            return x
        return x - x.mean(1 if "embed" in name else 0, keepdim=True)

    assert not complete(layernorm, changed(layernorm, centred))


def test_a_head_that_becomes_a_scaled_embedding_is_scaled(tmp_path: Path) -> None:
    """It was equal to the embedding: now that is twice as large, and so are the logits."""
    model = llama(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    source = saved(model, tmp_path / "source")
    scaled = doubled()
    wrong = changed(
        source,
        lambda n, x: None if n == "lm_head.weight" else scaled(n, x),
        tie_word_embeddings=True,
        rms_norm_eps=4 * model.config.rms_norm_eps,
    )
    assert not complete(source, wrong)


def test_blocks_without_a_norm_before_them_see_the_scale(tmp_path: Path) -> None:
    """OLMo 2, by the scalars that a norm before each block would take back."""
    model = of_family("olmo2", tie_word_embeddings=False)
    source = saved(model, tmp_path / "source")
    eps = 4 * model.config.rms_norm_eps
    assert not complete(source, changed(source, doubled(), rms_norm_eps=eps))


def test_tensors_in_a_narrower_dtype_are_said(tmp_path: Path) -> None:
    """Whether the embedding is among them or not."""
    source = saved(llama(), tmp_path / "source")
    narrow = changed(source, lambda n, x: x.half() if "q_proj" in n else x)
    assert (
        "once 2 of 21 tensors are rounded to float16:" in verify(source, narrow).verdict
    )


def test_a_dtype_that_config_json_names_rounds_what_is_stored(tmp_path: Path) -> None:
    """from_pretrained follows it, unless it is told."""
    source = saved(llama(), tmp_path / "source")
    found = verify(source, changed(source, lambda _, x: x, dtype="bfloat16"))
    wrong = [check for check in found.checks if check.passed is False]
    assert [check.name for check in wrong] == ["dtype when loaded"]
    assert "float32 → bfloat16" in wrong[0].found


def test_float16_is_no_wider_than_bfloat16_when_loaded(tmp_path: Path) -> None:
    """Its numbers lie closer, and it has none where the other's smallest are."""
    source = saved(llama().bfloat16(), tmp_path / "source")
    found = verify(source, changed(source, lambda _, x: x, dtype="float16"))
    wrong = [check for check in found.checks if check.passed is False]
    assert [check.name for check in wrong] == ["dtype when loaded"]


def test_a_source_of_few_positions_can_be_measured(tmp_path: Path) -> None:
    """GPT-2 with 16: the text and what follows it are as long as they may be."""
    source = saved(of_family("gpt2", n_positions=16), tmp_path / "source")
    wrong = changed(source, lambda n, x: x * 1.01 if n.endswith("wpe.weight") else x)
    found = verify(source, wrong)
    measured = {check.name: check.passed for check in found.checks}
    assert "greedy continuation" in measured
    assert False in measured.values()


PAIRS: dict[str, tuple[str, dict[str, float], bool]] = {
    "up and down": ("llama", {"up_proj": 3, "down_proj": 1 / 3}, True),
    "values and o": ("llama", {"v_proj": 1.7, "o_proj": 1 / 1.7}, True),
    "queries and keys": ("llama", {"q_proj": 1.7, "k_proj": 1 / 1.7}, True),
    "experts": ("mixtral", {"w3": 3, "w2": 1 / 3}, True),
    "one of two": ("llama", {"up_proj": 3}, False),
    "no inverses": ("llama", {"up_proj": 1.7, "down_proj": 1 / 1.71}, False),
    "around a gate": ("llama", {"gate_proj": 3, "down_proj": 1 / 3}, False),
    "around an activation": (
        "gpt_neox", {"dense_h_to_4h": 3, "dense_4h_to_h": 1 / 3}, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PAIRS)
def test_factors_that_cancel_are_allowed_their_rounding(
    name: str, dtype: str, tmp_path: Path
) -> None:
    """k W and W' / k had to be rounded once where k is no power of two."""
    family, factors, same = PAIRS[name]
    source = saved(of_family(family).to(getattr(torch, dtype)), tmp_path / "source")

    def scaled(name: str, w: Tensor) -> Tensor:
        k = next((k for part, k in factors.items() if part in name), 1)
        return (w.double() * k).to(w.dtype)

    assert verify(source, changed(source, scaled)).same is same
