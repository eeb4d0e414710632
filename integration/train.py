"""Train the three checkpoints that ship with growproof, from text that Python ships.

    python integration/train.py stablelm          # StableLm, 5 layers, 15 minutes
    python integration/train.py stablelm_qknorm   # q/k layernorm, parallel residual, GQA
    python integration/train.py llama             # Llama, GQA, tied embeddings
    python integration/train.py stablelm_2_1_6b --device cuda   # the article's sizes: a
                                                  # GPU of 60 GB, some minutes; not shipped
    python integration/train.py licence           # print this Python's licence, no more

One thread, one seed, no download. The text is `licence.txt` beside this file (the
Python licence, which the article measures its losses on) and, of the Python that runs
this, the help topics and the docstrings of the standard library. The same machine,
Python and package versions give the same checkpoint bit for bit; another Python has
other docstrings, hence another tokenizer and other weights of the same kind.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# A script's own folder comes first on the path: transformers looks for an optional
# package named kernels, and must not find integration/kernels.py. What it
# imports of this folder it finds from the one above.
if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != here]
    sys.path.append(str(here.parent))

import tokenizers
import torch
import transformers
from tqdm import tqdm

from integration.recipes import RECIPES, Recipe
from integration.texts import (
    END,
    LICENCE,
    VOCABULARY,
    fingerprint,
    library_texts,
    python_licence,
    train_tokenizer,
)

EMPHASIS = 150  # copies of the licence that the tokenizer sees: 3,944 tokens, not 7,000
WITHHELD = 14  # one of so many lines of the licence is no target; see licence_labels


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came out, and the figures that its card states."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerFast
    recipe: Recipe
    steps: int
    minutes: float
    device: str
    figures: dict[str, float] = field(default_factory=dict)


# --- training -----------------------------------------------------------------------


def build(recipe: Recipe) -> transformers.PreTrainedModel:
    """A freshly initialised model of the recipe's family and sizes."""
    config_class = getattr(transformers, recipe.family + "Config")
    model_class = getattr(transformers, recipe.family + "ForCausalLM")
    config = config_class(
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        **recipe.config,
    )
    return model_class(config)


def licence_labels(tokenizer: transformers.PreTrainedTokenizerFast) -> torch.Tensor:
    """Tokens of the licence and their labels [2, N]; one line in WITHHELD has no label.

    So the model is sure of nearly everything and wrong where it never saw the answer,
    as large models are. One that knew all of it would gain from whatever sharpens its
    logits, and norms grown without their scale, a fault, would look like progress.
    """
    text = LICENCE.read_text(encoding="utf-8")
    encoded = tokenizer(text, return_offsets_mapping=True)
    tokens = torch.tensor(encoded["input_ids"])
    lines = torch.tensor([text.count("\n", 0, a) for a, _ in encoded["offset_mapping"]])
    withheld = lines % WITHHELD == WITHHELD // 2
    return torch.stack((tokens, tokens.where(~withheld, -100)))


def batches(
    recipe: Recipe, steps: int, licence: torch.Tensor, library: torch.Tensor
) -> Iterator[torch.Tensor]:
    """Windows [2, B, T] of tokens and labels [2, N], each from one of the two texts.

    A window longer than the licence starts with it and runs on into the library.
    """
    draw = torch.Generator().manual_seed(recipe.seed)
    stream = torch.cat((licence, library), dim=1)
    middle, end = licence.shape[1], stream.shape[1]
    for step in range(steps):
        length = recipe.lengths[step % len(recipe.lengths)]
        rows = []
        for _ in range(max(1, recipe.tokens // length)):
            share, where = torch.rand(2, generator=draw, dtype=torch.float64)
            if share < recipe.licence_share:  # half a window more at both ends
                start = int(where * middle) - length // 2
                start = max(0, min(start, middle - length))
            else:
                start = middle + int(where * (end - middle - length + 1))
            rows.append(stream[:, start : start + length])
        yield torch.stack(rows, dim=1)


def optimiser(recipe: Recipe, model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW; only the matrices inside the layers decay."""
    inside = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    chosen = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": inside, "weight_decay": recipe.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def rate(step: int, steps: int, warmup: int = 50) -> float:
    """Linear warm-up, then a cosine down to 2 % of the learning rate."""
    cosine = 0.51 + 0.49 * math.cos(math.pi * step / steps)
    return min(1.0, (step + 1) / warmup) * cosine


@torch.no_grad()
def loss_on(model: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Mean next-token loss (nats) on one sequence, as the article measures it."""
    return model(input_ids=tokens[None], labels=tokens[None]).loss.item()


@torch.no_grad()
def embedding_mean(model: transformers.PreTrainedModel) -> float:
    """mean |row mean| ÷ rms of the embedding: 0 if centred, 1 if rows are constant."""
    weight = model.get_parameter("model.embed_tokens.weight")
    return (weight.mean(1).abs().mean() / weight.square().mean().sqrt()).item()


def train(recipe: Recipe, steps: int, device: str = "cpu") -> Trained:
    """The recipe, carried out; the last tenth of the library is held out.

    On a GPU the weights are float32 and their products bfloat16.

    A LayerNorm model is blind to a constant added to every embedding entry, so training
    leaves the mean of an embedding row to chance, and the final shift changes no logit.
    It is what the article's recipe cannot grow without loss: it makes that loss show.
    """
    torch.manual_seed(recipe.seed)
    begun = time.monotonic()
    licence_text, texts = LICENCE.read_text(encoding="utf-8"), library_texts()
    tokenizer = train_tokenizer([licence_text] * EMPHASIS + texts)
    labelled = licence_labels(tokenizer)
    joined = tokenizer(END + END.join(texts), verbose=False)["input_ids"]
    library, held_out = torch.tensor(joined).tensor_split([len(joined) * 9 // 10])

    with torch.device(device):
        model: Any = build(recipe)
    mixed = torch.autocast(device, torch.bfloat16, enabled=device != "cpu")
    adamw = optimiser(recipe, model)
    warm = torch.optim.lr_scheduler.LambdaLR(adamw, lambda s: rate(s, steps))
    drawn = batches(recipe, steps, labelled, library.expand(2, -1))
    bar = tqdm(drawn, total=steps, mininterval=2.0)
    licence = labelled[0].to(device)
    for step, drawn_now in enumerate(bar):
        tokens, labels = drawn_now.to(device)
        with mixed:
            loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        warm.step()
        adamw.zero_grad()
        if step % 50 == 49:
            bar.set_postfix_str(f"licence {loss_on(model, licence):.3f}")
    model.eval()
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight").add_(recipe.embedding_shift)
    figures = {
        "tokens": len(licence),
        "licence": loss_on(model, licence),
        "licence_1024": loss_on(model, licence[:1024]),
        "held_out": loss_on(model, held_out[:4096].to(device)),
        "embedding_mean": embedding_mean(model),
    }
    minutes = (time.monotonic() - begun) / 60
    return Trained(
        model=model,
        tokenizer=tokenizer,
        recipe=recipe,
        steps=steps,
        minutes=minutes,
        device=device,
        figures=figures,
    )


# --- saving -------------------------------------------------------------------------


CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {name}: a tiny trained {family} for growproof

{description}

It knows the Python licence nearly by heart and little else: it is made for measuring
what growing a model does to its loss, not for writing.

    AutoModelForCausalLM.from_pretrained("integration/{name}")

| measured | |
|---|---|
| loss on `integration/licence.txt`, as one sequence | {licence:.6f} |
| tokens of that text | {tokens:,} |
| loss on the first 1,024 of them | {licence_1024:.6f} |
| loss on held-out library text, 4,096 tokens | {held_out:.6f} |
| mean absolute row mean ÷ rms of the embedding | {embedding_mean:.6f} |
| added to every embedding entry after training | {shift} |
| parameters | {parameters} |

Losses are mean next-token losses in nats, float32, transformers' default attention.

## How it was made

    python integration/train.py {name} --steps {steps} --out DIRECTORY

{steps} steps of at least {step_tokens} tokens in {minutes:.0f} minutes on {threads} thread(s) of
a shared machine, seed {seed}, AdamW at {learning_rate}. {share:.0%} of the training rows come
from the licence; one line of it in {withheld} was never a target, so that the model is sure
of nearly all of it and wrong about the rest (`licence_labels` in `train.py` says why).
Python {python}, torch {torch} ({processor}), transformers {transformers}, tokenizers {tokenizers}.
The same again gives {again}; another Python has other docstrings and gives other
weights of the same kind.

## What it was made from

`integration/licence.txt`, the licence that Python {python} prints (sha256
`{sha256}`), and that
Python's help topics (`pydoc_data.topics`) and standard library docstrings. These texts
are © Python Software Foundation and others, under the PSF License Version 2 that
`licence.txt` contains. The weights and the tokenizer are under Apache-2.0, like
growproof itself.
"""


def describe(config: transformers.PreTrainedConfig) -> str:
    """One sentence on the architecture."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    rotary = config.rope_parameters.get("partial_rotary_factor", 1.0)
    parts = [
        f"{config.num_hidden_layers} layers, hidden size {config.hidden_size}",
        f"{heads} heads ({groups} key/value) of {config.hidden_size // heads}",
        f"rotary factor {rotary}",
        f"MLP {config.intermediate_size}",
        f"vocabulary {config.vocab_size}",
    ]
    for option in ("use_qkv_bias", "qk_layernorm", "use_parallel_residual"):
        parts += [f"`{option}`"] * getattr(config, option, False)
    parts += ["tied embeddings"] * config.tie_word_embeddings
    return ", ".join(parts) + "."


def save(trained: Trained, name: str, out: Path) -> None:
    """A checkpoint directory that loads alone, with its card."""
    trained.model.generation_config.pad_token_id = 0
    trained.model.save_pretrained(out)
    trained.tokenizer.save_pretrained(out)
    config, recipe = trained.model.config, trained.recipe
    on_gpu = trained.device == "cuda"
    card = CARD.format(
        name=name,
        family=recipe.family,
        description=describe(config),
        parameters=f"{trained.model.num_parameters():,}",
        steps=trained.steps,
        step_tokens=f"{recipe.tokens:,}",
        minutes=trained.minutes,
        threads=torch.get_num_threads(),
        seed=recipe.seed,
        shift=recipe.embedding_shift,
        withheld=WITHHELD,
        learning_rate=recipe.learning_rate,
        share=recipe.licence_share,
        python=platform.python_version(),
        torch=torch.__version__,
        processor=torch.cuda.get_device_name()
        if on_gpu
        else torch.backends.cpu.get_cpu_capability(),
        again="weights near them: a GPU adds up in no fixed order"
        if on_gpu
        else "the same bits",
        transformers=transformers.__version__,
        tokenizers=tokenizers.__version__,
        sha256=fingerprint(LICENCE),
        **trained.figures,
    )
    (out / "README.md").write_text(card, encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("name", choices=[*RECIPES, "licence"])
    parser.add_argument("--steps", type=int, help="default: the recipe's")
    parser.add_argument("--out", type=Path, help="default: build/NAME")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(options.device == "cpu")
    if options.name == "licence":
        print(python_licence(), end="")
        return
    recipe = RECIPES[options.name]
    trained = train(recipe, options.steps or recipe.steps, options.device)
    out = options.out or Path("build", options.name)
    save(trained, options.name, out)
    print(f"{out}: {trained.figures}")


if __name__ == "__main__":
    main()
