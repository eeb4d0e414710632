"""Repeats one failure of a growproof law. Exit 1 while it is there, 0 once mended."""

import copy
import importlib
import sys
import tempfile
from typing import Any

import torch
import transformers

from ..laws.models import make

# CASE
LAW = ""
GROWER = ("growproof", "grow")
FAMILY = "llama"
CONFIG: dict[str, Any] = {}
TARGET: dict[str, int] = {}
SEED, REGIME = 0, "loud"
BATCH, TOKENS = 1, 1
# END CASE


def source_model() -> Any:
    """The model before growing, float64, with the seeded weights of the case."""
    how = {"attn_implementation": "eager", "experts_implementation": "eager"}
    config = transformers.AutoConfig.for_model(FAMILY, **CONFIG, **how)
    return make(config, SEED, REGIME)


def problems(model: Any, grown: Any, ids: torch.Tensor) -> list[str]:
    """Everything that is wrong with the grown model, as sentences."""
    found = []
    with torch.no_grad():
        old, new = (m(ids, output_hidden_states=True) for m in (model, grown))
    error = float((old.logits - new.logits).abs().max() / old.logits.abs().max())
    print(f"logits differ by {error:.3g} of their scale (float32 islands: about 1e-6)")
    if not error < 1e-5:
        found.append(f"lossless: logits differ by {error:.3g} of their scale")
    width = model.config.hidden_size
    lanes = [
        float(h[..., width:].abs().max())
        for h in new.hidden_states[:-1]
        if h.shape[-1] > width
    ]
    if any(lanes):
        found.append(f"zero_padding: new residual lanes hold up to {max(lanes):.3g}")
    for name, p in grown.named_parameters():
        if not p.isfinite().all():
            found.append(f"hygiene: {name} holds a NaN or an infinity")
    if grown.training != model.training:
        found.append("hygiene: the mode (train/eval) changed")
    if grown.dtype != model.dtype:
        found.append(f"hygiene: dtype {grown.dtype}, expected {model.dtype}")
    with tempfile.TemporaryDirectory() as folder:
        grown.save_pretrained(folder)
        again = type(grown).from_pretrained(folder, dtype=grown.dtype)
    with torch.no_grad():
        if not torch.equal(again.eval()(ids).logits, grown.eval()(ids).logits):
            found.append("hygiene: logits change through save and reload")
        cached = grown(ids[:, :1], use_cache=True)
        if ids.shape[1] > 1:
            rest = grown(ids[:, 1:], past_key_values=cached.past_key_values).logits
            if not torch.allclose(rest, new.logits[:, 1:], atol=1e-4):
                found.append("hygiene: logits with a cache differ")
    return found


def main() -> int:
    """Grow the model of the case, and say what is wrong with the result."""
    print(LAW)
    model = source_model()
    before = copy.deepcopy(model.state_dict())
    grower = getattr(importlib.import_module(GROWER[0]), GROWER[1])
    grown = grower(model, dict(TARGET))
    generator = torch.Generator().manual_seed(SEED + 1)
    ids = torch.randint(0, CONFIG["vocab_size"], (BATCH, TOKENS), generator=generator)
    found = problems(model, grown, ids)
    after = model.state_dict()
    if any(not torch.equal(w, after[name]) for name, w in before.items()):
        found.append("hygiene: the source was changed")
    print("\n".join(found) or "nothing wrong by this script's own, looser checks")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
