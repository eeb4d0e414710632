"""Train the tiny checkpoints in `integration/tiny`: one for each feature of a decoder.

    python integration/train_tiny.py                # all of them, some minutes
    python integration/train_tiny.py gemma2 --out DIRECTORY

The three checkpoints of `train.py` are a StableLm, one with q/k norms, and a Llama.
These have what those have not: caps, norms around a block, a norm of each head, windows,
learned positions, a plain MLP, tensors that are joined, transposed or kept by head,
experts, multipliers. One thread, one seed, no download: the text is `licence.txt`, the
tokenizer that of `integration/llama`. The same machine and versions give the same bits.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as in train.py: this folder must not come first
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    sys.path.append(str(here.parent))

import torch
import transformers
from tqdm import tqdm

from integration import recipes, texts, train

HERE = Path(__file__).resolve().parent
TINY, TOKENIZER = HERE / "tiny", HERE / "llama"
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
GATED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 64}
PLAIN = SIZES | {"intermediate_size": 128, "hidden_act": "gelu"}
WINDOWS = {"sliding_window": 48, "layer_types": ["sliding_attention", "full_attention",
                                                 "sliding_attention"]}  # fmt: skip
PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                               "partial_rotary_factor": 0.5}}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What a checkpoint is there for, and its config."""

    has: str
    config: dict[str, Any]


MODELS = {
    "gemma2": Tiny(
        has="softcaps, norms around both blocks, 1 + weight, √D · embedding, a score "
        "scale in the config, a window in every other layer",
        config=GATED | WINDOWS | {"head_dim": 8, "query_pre_attn_scalar": 12,
                                  "attn_logit_softcapping": 20.0},
    ),
    "qwen3": Tiny(
        has="a norm over the lanes of each head, windows, head_dim · heads ≠ hidden size",
        config=GATED | WINDOWS | {"head_dim": 16, "use_sliding_window": True,
                                  "tie_word_embeddings": True},
    ),
    "gpt2": Tiny(
        has="learned positions, LayerNorm and a tied head, a plain MLP, q, k and v in one "
        "tensor, matrices transposed",
        config={"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 512},
    ),
    "gpt_neox": Tiny(
        has="LayerNorm, blocks in parallel, partial rotary, q, k and v kept head by head",
        config=PLAIN | PARTIAL,
    ),
    "mixtral": Tiny(
        has="experts, of which a router chooses two",
        config=GATED | {"intermediate_size": 32, "num_local_experts": 4,
                        "num_hidden_layers": 2, "tie_word_embeddings": True},
    ),
    "olmo2": Tiny(
        has="norms behind the blocks, a norm over all heads",
        config=GATED | {"tie_word_embeddings": True},
    ),
    "granite": Tiny(
        has="multipliers of the embedding, of both blocks, of the scores and the logits",
        config=GATED | {"embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                        "attention_multiplier": 0.25, "logits_scaling": 2.0,
                        "tie_word_embeddings": True},
    ),
}  # fmt: skip

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
---

# {name}: a tiny trained {name} for growproof

It has {has}. It is made for measuring what growing a model does to its loss, not for
writing; its tokenizer is that of `integration/llama`.

| measured | |
|---|---|
| loss on the first {tokens} tokens of `integration/licence.txt` | {loss:.6f} |
| parameters | {parameters} |

The loss is the mean next-token loss in nats, float32, transformers' default attention.

## How it was made

    python integration/train_tiny.py {name} --out DIRECTORY

{steps} steps of {step_tokens} tokens of the licence (one line in {withheld} is never a
target, as in `train.py`) in {seconds:.0f} seconds on {threads} thread of a shared machine, seed
{seed}, AdamW at {learning_rate}. Python {python}, torch {torch} ({cpu}), transformers
{transformers}. The same again gives the same bits.

## What it was made from

`integration/licence.txt` (sha256 `{sha256}`),
© Python Software Foundation and others, under the PSF License Version 2 that it contains.
The weights are under Apache-2.0, like growproof itself.
"""
RECIPE = recipes.Recipe(
    family="", config={}, steps=500, lengths=(128, 256), tokens=1024,
    learning_rate=1e-2, licence_share=1.0,
)  # fmt: skip
TOKENS = 256  # that a loss is measured on


def text() -> tuple[torch.Tensor, torch.Tensor]:
    """The licence's tokens and labels [2, N], and what is measured on [TOKENS]."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(TOKENIZER)
    labelled = train.licence_labels(tokenizer)
    return labelled, labelled[0, :TOKENS]


def build(name: str) -> Any:
    """A freshly initialised model of that name."""
    fields = {"vocab_size": texts.VOCABULARY, "initializer_range": 0.08,
              "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}  # fmt: skip
    if "n_embd" not in MODELS[name].config:
        fields["max_position_embeddings"] = 512
    config = transformers.AutoConfig.for_model(name, **fields | MODELS[name].config)
    for field in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        if hasattr(config, field):
            setattr(config, field, 0.0)
    return transformers.AutoModelForCausalLM.from_config(config)


def trained(name: str, steps: int) -> tuple[Any, float]:
    """The model of that name after so many steps, and the seconds that they took."""
    torch.manual_seed(RECIPE.seed)
    begun = time.monotonic()
    labelled, _ = text()
    model = build(name)
    adamw = train.optimiser(RECIPE, model)
    warm = torch.optim.lr_scheduler.LambdaLR(adamw, lambda s: train.rate(s, steps))
    rows = train.batches(RECIPE, steps, labelled, labelled)
    for tokens, labels in tqdm(rows, total=steps, desc=name, mininterval=5.0):
        model(input_ids=tokens, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        warm.step()
        adamw.zero_grad()
    return model.eval(), time.monotonic() - begun


def save(name: str, model: Any, out: Path, *, steps: int, seconds: float) -> float:
    """A checkpoint directory with its card; returns the loss that the card states."""
    loss = train.loss_on(model, text()[1])
    model.generation_config.pad_token_id = 0
    model.save_pretrained(out)
    card = CARD.format(
        name=name, has=MODELS[name].has, loss=loss, tokens=TOKENS, steps=steps,
        seconds=seconds, parameters=f"{model.num_parameters():,}",
        step_tokens=f"{RECIPE.tokens:,}", withheld=train.WITHHELD,
        threads=torch.get_num_threads(), seed=RECIPE.seed,
        learning_rate=RECIPE.learning_rate, python=platform.python_version(),
        torch=torch.__version__, cpu=torch.backends.cpu.get_cpu_capability(),
        transformers=transformers.__version__, sha256=texts.fingerprint(texts.LICENCE),
    )  # fmt: skip
    (out / "README.md").write_text(card, encoding="utf-8")
    return loss


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--out", type=Path, default=TINY, help="default: %(default)s")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(MODELS))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}, only {', '.join(MODELS)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in options.names or MODELS:
        model, seconds = trained(name, options.steps)
        out = options.out / name
        loss = save(name, model, out, steps=options.steps, seconds=seconds)
        print(f"{out}: loss {loss:.4f}")


if __name__ == "__main__":
    main()
