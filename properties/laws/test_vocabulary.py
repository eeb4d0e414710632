"""New tokens: no old logit changes, nothing old reads them, and none is ever chosen."""

import tempfile
from typing import Any

import torch
from growproof.padding import State
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from . import claims
from .checks import Responses, close, steps
from .grown import Grown, Violation, forward, grow
from .models import Case
from .registry import law, lossless, zero_padding
from .strategies import cases, fewer, padded_cases
from .test_hygiene import quietly

STEPS = 3  # tokens that are generated


def old_logits(grown: Grown) -> Tensor:
    """The grown model's logits of the old tokens on a text of old ones, in order."""
    logits = forward(grown.decoder, grown.state, grown.case.ids)["logits"]
    if logits.shape[-1] < grown.case.decoder.vocab:
        raise Violation(f"{logits.shape[-1]} logits", tap="logits", case=grown.case)
    return logits[..., : grown.case.decoder.vocab]


@law(
    lossless, claim=claims.VOCABULARY, proof="vocabulary_rows", budget="decoder",
    needs=("vocab",),
)  # fmt: skip
@fewer(2)
@given(case=cases(vocab="too"))
def test_old_tokens_keep_their_logits(grower, case: Case) -> None:
    """f'(tokens)[v] = f(tokens)[v] for every old token v, whatever else grows."""
    grown = grow(case, grower)

    def run(state: State) -> dict[str, Tensor]:
        return {"logits": forward(case.decoder, state, case.ids)["logits"]}

    truth = run(grown.old_state)
    response = Responses(run, grown.old_state, truth, grown.dtype)
    close(
        old_logits(grown), truth["logits"], tap="logits", case=case,
        **steps(response, "logits"), dtype=grown.dtype,
    )  # fmt: skip


@law(zero_padding, claim=claims.VOCABULARY, needs=("vocab",))
@fewer(2)
@given(case=cases(vocab="alone"))
def test_old_logits_stay_bit_for_bit(grower, case: Case) -> None:
    """Where the vocabulary grows alone, old rows and old logits are the old bits."""
    grown = grow(case, grower)
    for name, w in grown.old_state.items():
        new = grown.state[name]
        rows = new[: len(w)] if name.startswith(("embed.", "head.")) else new
        if not torch.equal(rows, w):
            raise Violation(f"{name} has other old entries", tap="logits", case=case)
    before = forward(case.decoder, grown.old_state, case.ids)["logits"]
    assert torch.equal(old_logits(grown), before), "logits of old tokens changed"


@law(lossless, claim=claims.VOCABULARY, needs=("vocab",))
@fewer(2)
@given(case=cases(vocab="too"))
def test_new_rows_do_not_matter(grower, case: Case) -> None:
    """Whatever new tokens' rows of embedding and head hold, old logits are the same."""
    model, n = grow(case, grower).model, case.decoder.vocab
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        before = model(case.ids).logits[..., :n]
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            assert len(end.weight) > n, "there is no row of a new token"
            end.weight[n:].normal_(generator=generator)
        after = model(case.ids).logits[..., :n]
    assert torch.equal(before, after), f"old logits read the rows from {n} on"


@law(zero_padding, claim=claims.VOCABULARY, needs=("vocab",), version=2)
@given(case=padded_cases(vocab="too"))
def test_new_tokens_keep_to_old_lanes(grower, case: Case) -> None:
    """On a text of new tokens, too, every new lane of the residual is exactly 0."""
    grown, d = grow(case, grower), case.decoder
    ids = torch.arange(d.vocab, grown.decoder.vocab)[None]
    for tap, x in forward(grown.decoder, grown.state, ids).items():
        if tap.endswith(("embedding", "residual")) and x[..., d.hidden :].any():
            raise Violation(
                f"{tap} of a new token must be zero in its new lanes",
                tap=tap,
                case=case,
            )


def scores(model: Any, ids: Tensor) -> Tensor:
    """What generate() chooses from, (steps, texts, vocabulary), its processors applied."""
    text = model.generate(
        ids, do_sample=False, max_new_tokens=STEPS, pad_token_id=0,
        attention_mask=torch.ones_like(ids), output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return torch.stack(text.scores).double()


def loaded(model: Any) -> Any:
    """The model, saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        quietly(model.save_pretrained, folder)
        load: Any = AutoModelForCausalLM.from_pretrained
        return quietly(
            load, folder, dtype="auto", attn_implementation="eager",
            experts_implementation="eager",
        )  # fmt: skip


@law(lossless, claim=claims.VOCABULARY, proof="vocabulary_new", needs=("vocab",))
@fewer(2)
@given(
    case=cases(vocab="too", max_tokens=4), saved=st.booleans(),
    banned=st.integers(-1, 4),
)  # fmt: skip
def test_new_tokens_are_never_chosen(
    grower, case: Case, saved: bool, banned: int
) -> None:
    """generate() gives every new token the probability 0, and bans what it banned."""
    source = case.model()
    if banned >= 0:
        source.generation_config.suppress_tokens = [banned]
    model = grower(source, dict(case.target))
    with torch.no_grad():
        chances = scores(loaded(model) if saved else model, case.ids).softmax(-1)
    new = chances[..., case.decoder.vocab :]
    assert new.shape[-1], "there is no new token"
    assert not new.any(), f"a new token has the probability {float(new.max()):.3g}"
    if banned >= 0:
        assert not chances[..., banned].any(), f"token {banned} is no longer suppressed"
