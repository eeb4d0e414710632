"""One function, whichever door it is entered by: live, and saved and loaded again."""

import copy
import tempfile
from typing import Any

import torch
from growproof.models import build, state_of
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from . import claims
from .doors import DOORS, FORWARD, through
from .given import GENERATION
from .grown import grow
from .models import Case
from .registry import hygiene, law
from .strategies import cases, fewer
from .test_handed_back import generation
from .test_hygiene import quietly
from .world import changed

LAST = 1.0  # of the largest logit: the same sums in the same order leave nothing


@law(hygiene, claim=claims.HYGIENE, version=2)
@fewer(3)
@given(case=cases(min_tokens=2, max_tokens=6))
def test_every_door_leads_to_one_function(grower, case: Case) -> None:
    """Loss, embeddings, positions, outputs, training, cache, long text, beams: f' = f'."""
    model = grow(case, grower).model.eval()
    with torch.no_grad():
        logits = model(case.ids, use_cache=False).logits
    for name in DOORS:
        through(name, model, case.ids, logits)


@law(hygiene, claim=claims.PRECISION, dtype=("float32", "bfloat16", "float16"))
@fewer(3)
@given(case=cases(max_tokens=6))
def test_the_live_model_is_its_weights(grower, dtype: str, case: Case) -> None:
    """In bf16, fp16, fp32 the live model's logits are those of its config and weights."""
    model = grow(case, grower, getattr(torch, dtype)).model.eval()
    live = copy.deepcopy(model)  # its memory lies as that of the other does
    made = build(copy.deepcopy(model.config), state_of(model)).eval()
    with torch.no_grad():
        got, expected = (m(case.ids, use_cache=False).logits for m in (live, made))
    scale = expected.abs().max().clamp_min(torch.finfo(live.dtype).tiny)
    worst = float((got - expected).abs().max() / scale) / torch.finfo(live.dtype).eps
    assert worst <= LAST, (
        f"the live model in {dtype} is {worst:.3g} roundings off what its config and "
        "weights say: something else lives in it"
    )


def scalars_of(live: Any, loaded: Any, dtype: torch.dtype) -> Any:
    """The loaded model with the live one's scalar buffers, where they are these, rounded.

    A multiplier that from_pretrained rounds to the dtype is rounded in use if it is live.
    """
    known, u = dict(live.named_buffers()), torch.finfo(dtype).eps
    for name, b in loaded.named_buffers():
        if (
            b.numel() == 1
            and name in known
            and torch.allclose(b, known[name].to(b), rtol=u)
        ):
            b.copy_(known[name])
    return loaded


@law(hygiene, claim=claims.HYGIENE, version=2)
@fewer(2)
@given(
    case=cases(min_tokens=2, max_tokens=6),
    dtype=st.sampled_from(("float64", "bfloat16", "float16")),
    used=st.booleans(),
    door=st.sampled_from(tuple(FORWARD)),
)
def test_saves_and_loads(grower, case: Case, dtype: str, used: bool, door: str) -> None:
    """save_pretrained, then from_pretrained, in its own dtype: what the live model does."""
    source = case.model(getattr(torch, dtype))
    if used:
        source.generation_config.update(**GENERATION)
    model = grower(source, dict(case.target))
    with tempfile.TemporaryDirectory() as folder:
        quietly(model.save_pretrained, folder)
        load: Any = AutoModelForCausalLM.from_pretrained
        again, info = quietly(
            load, folder, dtype="auto", attn_implementation="eager",
            output_loading_info=True, trust_remote_code=True,
        )  # fmt: skip
    if hasattr(model.config, "_experts_implementation"):  # no part of a checkpoint
        again.config._experts_implementation = model.config._experts_implementation
    assert not any(info.values()), f"loading reported {info}"
    assert again.dtype == source.dtype, (
        f"{again.dtype} on disk, expected {source.dtype}"
    )
    for name, w in model.state_dict().items():
        assert torch.equal(w, again.state_dict()[name]), f"{name} changed on disk"
    told = [
        *changed(
            generation(model.generation_config), generation(again.generation_config)
        )
    ]
    assert not told, f"generation_config.{told[0]} once saved and loaded again"
    again = scalars_of(model.eval().double(), again.eval().double(), source.dtype)
    with torch.no_grad():  # BLAS sees another alignment of the memory: no bits here
        before, after = (m(case.ids).logits for m in (model, again))
    worst = float((before - after).abs().max() / before.abs().max())
    assert worst < 1e-9, (
        "right in memory, lost when saved: through save and load the logits moved by "
        f"{worst:.3g} of scale"
    )
    through(door, again, case.ids, before)
