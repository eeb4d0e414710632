"""Given cases: right growers of a single axis conform, wrong ones are told what is wrong.

Small growers as other people write them: by the class's own constructor, knowing Llama
and one axis alone, nothing of growproof.
"""

import contextlib
import copy
import re

import growproof
import pytest
import torch

from ..growers.known_bad import BY_NAME as BAD
from ..growers.known_good import BY_NAME as GOOD
from ..laws import test_attention as attention
from ..laws import test_decoder as decoder
from ..laws import test_doors as doors
from ..laws import test_handed_back as handed_back
from ..laws import test_mlp as mlp
from ..laws import test_training as training
from ..laws import test_world as world
from ..laws.domain import CORE, DOMAIN
from ..laws.registry import Item, item_of
from .domain import narrow
from .judged import Judged
from .loading import Grower
from .test_evidence import CASE, causes_at

ONLY = {
    "mlp": "hidden,heads,groups,head_dim,layers,stablelm",
    "heads": "hidden,head_dim,mlp,layers,stablelm",
    "groups": "hidden,heads,head_dim,mlp,layers,zero_padding,stablelm",
}


def resized(model, place, **sizes):
    """A Llama with other sizes, each parameter what `place(name, old, zeros)` gives."""
    config = copy.deepcopy(model.config)
    config.update(sizes)
    new = type(model)(config)
    for name, p in new.named_parameters():
        old = model.get_parameter(name)
        p.data = place(name, old.data, torch.zeros(p.shape, dtype=old.dtype))
        p.requires_grad_(old.requires_grad)
    return new.train(model.training)


def end(name, old, new):
    """At the end, as far as anything is new."""
    new[tuple(slice(n) for n in old.shape)] = old
    return new


def heads_for_ranks(model, target):
    """New query heads at the end of each group; hidden_size stays."""
    c = model.config
    sizes = {n: target.get(n, getattr(c, n)) for n in
             ("num_attention_heads", "num_key_value_heads")}  # fmt: skip
    r, r_new = (h // g for h, g in (
        (c.num_attention_heads, c.num_key_value_heads), (*sizes.values(),)))  # fmt: skip

    def place(name, old, new):
        for part, dim in (("q_proj", 0), ("o_proj.weight", 1)):
            if part in name:
                a = new.unflatten(dim, (-1, r_new, c.head_dim))
                b = old.unflatten(dim, (-1, r, c.head_dim))
                end(name, b, a)
                return new
        return end(name, old, new)

    return resized(model, place, **sizes)


def repeated_groups(model, target):
    """Key/value heads one after the other under the query heads that they had."""
    g = model.config.num_key_value_heads
    g_new, k = target.get("num_key_value_heads", g), model.config.head_dim

    def place(name, old, new):
        if "k_proj" in name or "v_proj" in name:
            heads = old.unflatten(0, (g, k)).repeat_interleave(g_new // g, 0)
            return heads.flatten(0, 1).clone()
        return end(name, old, new)

    return resized(model, place, num_key_value_heads=g_new)


def in_blocks(model, target):
    """Zeros at the end of the MLP, to a multiple of 8 or not at all."""
    f = target.get("intermediate_size", model.config.intermediate_size)
    if f != model.config.intermediate_size and f % 8:
        raise NotImplementedError(f"only multiples of 8 are offered, not {f}")
    return resized(model, end, intermediate_size=f)


def fused_end(model, target):
    """Gate and up as one matrix, zeros at its end, halved again."""
    new = resized(model, end, **target)
    for a, b in zip(new.model.layers, model.model.layers, strict=True):
        both = torch.cat((b.mlp.gate_proj.weight, b.mlp.up_proj.weight)).detach()
        more = 2 * new.config.intermediate_size - len(both)
        both = torch.cat((both, both.new_zeros(more, both.shape[1])))
        a.mlp.gate_proj.weight.data, a.mlp.up_proj.weight.data = (
            half.clone() for half in both.chunk(2)
        )
    return new


def in_a_copy(model, target):
    """New Linears in a copy of the model, which keeps all else that it was made with."""
    grown, width = copy.deepcopy(model), target.get("intermediate_size")
    if {*target} - {"intermediate_size"}:
        raise NotImplementedError("only the MLP")
    for name, old in model.named_modules() if width else ():
        if isinstance(old, torch.nn.Linear) and ".mlp." in name:
            inner = "in_features" if "down" in name else "out_features"
            sizes = {"in_features": old.in_features, "out_features": old.out_features}
            sizes[inner] = width
            home, _, last = name.rpartition(".")
            new = torch.nn.Linear(
                **sizes, bias=old.bias is not None, dtype=old.weight.dtype
            )
            for p, q in zip(new.parameters(), old.parameters(), strict=True):
                p.data = end(name, q.data, torch.zeros_like(p))
                p.requires_grad_(q.requires_grad)
            block = grown.get_submodule(home)
            setattr(block, last, new.train(model.training))
            block.intermediate_size = width
    for p in grown.parameters():
        p.data, p.grad = p.data.contiguous(), None
    grown.get_input_embeddings()._forward_hooks.clear()
    grown.config.intermediate_size = width or grown.config.intermediate_size
    return grown


def noise_channel(model, target):
    """The embedding's new lanes hold noise; norms as they were, with ones."""

    def place(name, old, new):
        if "embed" in name:
            new.normal_()
        return end(name, old, new + 1 if "norm" in name else new)

    return resized(model, place, **target)


def logits(axis: str) -> Item:
    return item_of(decoder.test_logits_are_unchanged, "llama", axis)


TRAINS = item_of(training.test_new_parameters_train)
RIGHT = [
    (heads_for_ranks, "heads",
     (logits("heads"), item_of(doors.test_saves_and_loads),
      item_of(attention.test_attention_maps_padded_to_padded))),
    (repeated_groups, "groups", (logits("groups"), item_of(world.test_two_calls_agree))),
    (in_blocks, "mlp", (logits("mlp"), item_of(mlp.test_gate_and_up_are_padded))),
    (in_a_copy, "mlp",
     (item_of(handed_back.test_it_is_as_one_that_was_made_of_its_config),
      item_of(world.test_two_calls_agree))),
    (GOOD["between_neurons"], "mlp", (item_of(training.test_token_gradients_are_kept),)),
    (GOOD["trainable"], "mlp", (TRAINS,)),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _domain():
    """Whatever a test leaves out is back after it."""
    yield
    DOMAIN.features = set(CORE)


@pytest.mark.parametrize(("grow", "axis", "laws"), RIGHT)
def test_right_growers_of_one_axis_conform(grow, axis: str, laws) -> None:
    """What is left out is not asked for; what is declined is counted, and drawn around."""
    narrow([ONLY[axis]], ["trainable"] if TRAINS in laws else [])
    judged = Judged(Grower("somebody:grow", grow))
    for law in laws:
        law.judge(judged)
    grown = {name for name, n in judged.asked.axes.items() if n}
    assert grown <= {axis, "groups"}
    assert judged.asked.axes[axis] > 3
    declined = sum(judged.asked.declined.values())
    assert (declined > 0) == (grow is in_blocks), judged.asked.declined


MLP, WIDE, TALL = {"intermediate_size": 7}, {"hidden_size": 24}, {"head_dim": 8}


@pytest.mark.parametrize(
    ("grow", "target", "said"),
    [
        (BAD["uninitialised"], MLP, ["are never written"]),
        (BAD["remembered"], MLP, ["another model's weights came back"]),
        (BAD["scale_in_module"], TALL, ["right in memory, lost when saved: .*scaling"]),
        (BAD["divisor_in_module"], WIDE, ["right in memory, lost when saved: .*forward"]),
        (fused_end, MLP, ["up_proj is shifted by 2 to the front"]),
        (noise_channel, WIDE, ["embed_tokens differs from call to call", "norm"]),
    ],
)  # fmt: skip
def test_wrong_growers_are_told_what_is_wrong(grow, target, said) -> None:
    """The cause is named, in memory or on disk, by chance or always."""
    found = causes_at(grow, target)
    for wanted in said:
        assert any(re.search(wanted, cause) for cause in found), found


def half_hooked(model, target):
    """A hook that only a model in half precision meets."""
    grown = growproof.grow(model, target)
    grown.lm_head.register_forward_hook(
        lambda module, x, out: out if out.dtype.itemsize > 2 else out * 1.03
    )
    return grown


def test_the_live_model_is_run_in_its_own_dtype() -> None:
    """What it does in half precision alone is seen there, and nowhere in float32."""
    for dtype, wrong in (("float32", False), ("float16", True), ("bfloat16", True)):
        item = item_of(doors.test_the_live_model_is_its_weights, dtype)
        said = pytest.raises(AssertionError, match=r"in b?float16 is .* roundings off")
        with said if wrong else contextlib.nullcontext():
            item.judge(half_hooked)


def test_a_case_stays_what_it_was() -> None:
    """A grower that changes the source's config changes no later model of the case."""
    CASE.model().config.use_cache = False
    assert CASE.model().config.use_cache
    wrong = causes_at(BAD["source_config"], WIDE)
    assert "the source's config was changed" in wrong
