"""The gallery: other people's growers, judged, each with what its authors could change.

    python -m integration.gallery [NAME …]     # judge anew, and write the page

Each has its score in results/others/NAME.json, and all are on one page, README.md there,
which is made from the scores and from what is said here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from growproof.reading import text_in
from transformers import AutoModelForCausalLM

from properties.score import document
from properties.score.document import COUNTS, Cause, Score

from . import others
from .others import FAMILIES, WITHOUT

ROOT = Path(__file__).parent.parent
PAGES = Path(__file__).parent / "results" / "others"
UPCYCLED = PAGES / "sparse_upcycling.json"


@dataclass(frozen=True, kw_only=True)
class Other:
    """A grower: where it is from, what it does and got, what its authors could change."""

    title: str
    source: str
    says: str
    change: str


OTHERS: dict[str, Other] = {
    "hypercloning": Other(
        title="HyperCloning", source="Samragh et al. 2024, arXiv:2409.12903",
        says="""It clones neurons and divides by the number of clones, so that nothing is
            padded and new lanes are busy from the first step: the suite does not ask how a
            grower works. The paper's whole factors are relaxed here by weighing the clones,
            √(D'/(D c)) for c clones of a lane, which is exact for RMSNorm; a LayerNorm's
            mean bears whole factors only, so that StableLm is left out.""",
        change="""The embedding of a tied model is scaled as a writer and read as a reader:
            the first version here failed every tied model by a factor D'/D in the logits,
            the greedy text unchanged, as the published code does on OPT. The last norm can
            take that factor back. A test on logits, not on text, would have shown it.""",
    ),
    "lemon": Other(
        title="LEMON", source="Wang et al. 2023, arXiv:2310.07999",
        says="""Every writer is padded with the mean of its lanes, which keeps LayerNorm's
            mean in place; γ is scaled by η = √(D/D') and ε by η². It is exact on StableLm as
            well, where the article sees no way: this paper had found it a year before. It is
            not zero-padding, by design.""",
        change="""head_dim could grow too: with rotary in halves, lanes are padded within each
            half, θ becomes θ^(K'/K) and q takes √(K'/K). Its code checks itself by printing
            losses; the ε that it rescales is worth a test, since nobody else does.""",
    ),
    "net2net": Other(
        title="Net2Net", source="Chen, Goodfellow & Shlens 2016, arXiv:1511.05641",
        says="""The first of them all: a new neuron copies one drawn at random and both halve
            what they write; a new block is the identity. In a residual block that is a zero
            in the two matrices that write.""",
        change="""The paper adds noise to break the symmetry of copies, which costs exactness
            (it is left out here): noise on what is read, where what is written stays as it
            is, breaks it as well once training begins. Copies of an odd number divide by 3
            or 5, and so round: the last place of a low precision moves.""",
    ),
    "llama_pro": Other(
        title="LLaMA-Pro", source="Wu et al. 2024, arXiv:2401.02415",
        says="""Blocks are copied and the two matrices that write to the residual are zero
            (their biases too, which the paper's models do not have). Depth only.""",
        change="""A copy must know its own layer number, or `generate` with a cache goes
            wrong, and `layer_types` has to grow along: both were forgotten in tools that
            took the method over (`test_generates_with_a_cache`).""",
    ),
    "passthrough": Other(
        title="mergekit's passthrough, SOLAR's depth up-scaling",
        source="Goddard et al. 2024, arXiv:2403.13257; Kim et al. 2023, arXiv:2312.15166",
        says="""Ranges of layers are stacked as they are, those in the middle twice. It does
            not say that it keeps the function, and does not: it is here for the difference
            to the entry above. Of `hygiene` it fails one law only, which looks for the layers
            that are silent.""",
        change="""Two lines of a recipe make it exact: `scale: 0` for `o_proj` and for
            `down_proj` of the repeated layers, which mergekit's passthrough takes as
            parameters. As an option with a name, it would be found by those who train on
            afterwards.""",
    ),
    "article": Other(
        title="The article's script", source="Growing a model's hidden size, coldint",
        says="""As published, on its own ground: StableLm, as many key/value heads as heads.
            Against transformers 5 its rotary line is without effect, since
            `config.partial_rotary_factor` is no longer read: more lanes turn, sometimes an
            odd number of them, and then the model does not run. The grown model comes back
            in training mode, and `.to(torch.bfloat16)` rounds the rotary frequencies as
            well, so that it computes something else before it is saved than after it is
            loaded. Few of the other failures say anything new; hence the next one.""",
        change="""Set `rope_parameters["partial_rotary_factor"]`, just above the quotient so
            that `int()` cannot lose a lane; take mode and `requires_grad` from the source.""",
    ),
    "article_mended": Other(
        title="The article's script, mended", source="the same, by the lines above",
        says="""With the rotary line that transformers 5 reads and the mode kept, attention
            takes padded hidden states and returns padded ones, which is the article's claim.
            It fails where the logits of the whole model are compared, for two reasons in the
            norms: LayerNorm's mean moves, as the article says, and ε is not rescaled, which
            it does not say.""",
        change="""ε · D/D' in every norm, and the mean over the residual removed from every
            writer: stock LayerNorm is then exact, without a fork. `grow_proj` reshapes by
            one number of heads, and so takes no grouped keys.""",
    ),
    "fms_head_dim": Other(
        title="foundation-model-stack's larger head_dim",
        source="foundation-model-stack, pull request 472",
        says="""At load time zeros are put between the lanes of a head, for a kernel that
            takes larger ones: every rotary pair and frequency stays, without a new θ. On a
            Granite, whose scores are scaled by the config, that is the same function.""",
        change="""`torch.zeros` without a dtype makes float32 of everything: a float64 model
            is rounded on its way, and bfloat16 takes twice the memory. The factor need not
            be even. Where the scores are scaled by 1/√head_dim, as in a Llama, q must take
            √m. There is no test of it.""",
    ),
    "qwen_mlp": Other(
        title="Qwen's script for a wider MLP",
        source="Qwen's documentation of GPTQ, 29,568 → 29,696",
        says="""Rows of zeros behind gate and up, columns behind down, so that a quantisation
            block divides the MLP. The oldest growth of all, and right.""",
        change="""It writes the weights and leaves `config.json` to the reader; a rank of
            tensor parallelism gets the padding at its end only where each half of a fused
            gate and up is padded for itself (`growproof fit --block 128 --tp 4 --spread`).""",
    ),
    "kv_replication": Other(
        title="Key/value heads replicated",
        source="efficient-transformers' replicate_kv_heads, vLLM, Neuron",
        says="""Each key/value head is repeated, one copy behind the other, so that every
            rank of tensor parallelism has one of its own. Nothing is scaled and nothing
            rounded: the difference is 0 in any dtype.""",
        change="""The usual check compares ten greedy tokens, which a wrong order of copies
            can pass: logits would not. Repeating needs heads that the new number divides;
            where it does not, copies can share the query heads out, padded at the end of
            each share (28 heads on 4 groups become 32 on 8, not 56).""",
    ),
}  # fmt: skip
SPARSE = Other(
    title="Sparse upcycling", source="Komatsuzaki et al. 2023, arXiv:2212.05055",
    says="""Each expert of a mixture is a copy of the dense model's MLP, behind a router that
        is drawn. No target says that, so it is judged as two directories: the project's own
        Llama, and what became of it, by `growproof verify`.""",
    change="""It is the same function only where the chosen experts' weights sum to 1: with
        the softmax over all experts and no renormalising, a dense MLP comes out scaled by
        the sum of those that are chosen. Megatron's test of its upcycling allows an error of
        0.1, relative and absolute, where an exact one leaves none.""",
)  # fmt: skip


# --- judging ----------------------------------------------------------------------------


def flags(name: str) -> list[str]:
    """What a grower does and does not claim, as `growproof check` takes it."""
    family = ["--family", FAMILIES[name]] if name in FAMILIES else []
    return [*family, "--without", ",".join(WITHOUT[name])]


def judge(name: str) -> None:
    """Write the score of a grower, by all laws."""
    command = [
        sys.executable, "-m", "growproof.cli", "check", f"integration.others:{name}",
        *flags(name), "-p", "no:cacheprovider", "--no-isolate",
        "--score", str(PAGES / f"{name}.json"), "--sign",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=3600
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")


def upcycle(report: Path) -> None:
    """Make the project's Llama sparse, and write what `growproof verify` says of it."""
    source = ROOT / "integration" / "llama"
    with tempfile.TemporaryDirectory() as folder:
        dense = AutoModelForCausalLM.from_pretrained(source)
        others.sparse_upcycling(dense).save_pretrained(folder)
        command = [sys.executable, "-m", "growproof.cli", "verify", str(source), folder]
        subprocess.run([*command, "--json", str(report)], check=False)
    told = json.loads(report.read_text("utf-8"))
    told |= {"source": "integration/llama", "destination": "sparse_upcycling"}
    report.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


# --- the page ---------------------------------------------------------------------------


def load(name: str) -> Score:
    """The committed score of a grower."""
    return document.load(str(PAGES / f"{name}.json"))


def words(text: str) -> str:
    """Without the line breaks of the source."""
    return " ".join(text.split())


def entry(name: str, other: Other) -> list[str]:
    """A grower's part of the page."""
    score = load(name)
    causes = [f"- {cause.cause}: {laws_of(cause)}" for cause in score.causes]
    return [
        f"## {other.title}", "",
        f"`{name}`, after {other.source}. {words(other.says)}", "",
        f"**{score.verdict}**", "",
        *table(score), "", *causes, *([""] if causes else []),
        f"*What could change:* {words(other.change)}", "",
        f"[Its score]({name}.json), made by", "",
        "```sh", score.command, "```", "",
    ]  # fmt: skip


def laws_of(cause: Cause) -> str:
    """1 law, 2 laws."""
    return f"{len(cause.laws)} law{'s' * (len(cause.laws) > 1)}"


def table(score: Score) -> list[str]:
    """Promise and family: what became of the tests, and the largest error."""
    used = [name for name in COUNTS if any(vars(row)[name] for row in score.score)]
    found: dict[tuple[str, str], Counter[str]] = {}
    largest: dict[tuple[str, str], float] = {}
    for row in score.score:
        key = (row.promise, row.family)
        counts = {name: vars(row)[name] for name in used}
        found.setdefault(key, Counter()).update(counts)
        worst = float("inf") if row.worst is None else row.worst
        largest[key] = max(worst, largest.get(key, 0.0))
    lines = [
        f"| promise | family | {' | '.join(used)} | max error |",
        f"|---|---|{'---:|' * (len(used) + 1)}",
    ]
    for (promise, family), counts in found.items():
        cells = " | ".join(str(counts[name]) for name in used)
        error = largest[promise, family]
        told = f"{error:.2g}" if error else "–"
        lines.append(f"| {promise} | {family} | {cells} | {told} |")
    return lines


def sparse() -> list[str]:
    """The part of what was judged as two directories."""
    told = json.loads(text_in(UPCYCLED))
    return [
        f"## {SPARSE.title}", "",
        f"`sparse_upcycling`, after {SPARSE.source}. {words(SPARSE.says)}", "",
        f"**{told['verdict']}**", "",
        f"*What could change:* {words(SPARSE.change)}", "",
        f"[What `verify` says]({UPCYCLED.name}).", "",
    ]  # fmt: skip


def page() -> str:
    """All growers on one page."""
    scores = {name: load(name) for name in OTHERS}
    kept = [OTHERS[name].title for name, score in scores.items() if score.conforms]
    lines = [
        "# Other people's growers, judged", "",
        "Each was written anew from its description, as a black box "
        "([`integration/others.py`](../../others.py)), and run through all laws in the "
        "quick profile with what it does not claim left out. `growproof refresh gallery` "
        "makes the scores and this page, `growproof report NAME.json --html page.html` "
        "makes a whole page of one, and `pytest integration` runs part of them again. "
        f"{len(kept)} of {len(OTHERS)} conform: {', '.join(kept)}.", "",
        "The suite found three faults in the first versions of these very files. One is "
        "told under HyperCloning. One was in three of them: "
        "`type(model)(config).to(torch.bfloat16)` rounds the rotary frequencies, which are "
        "a buffer, to bfloat16 as well, so that the grown model computes something else "
        "before it is saved than after it is loaded (`test_saves_and_loads`). And all of "
        "them gave every layer the attention of the first, which a Qwen2 with sliding "
        "windows in some of its layers brought to light.", "",
    ]  # fmt: skip
    for name, other in OTHERS.items():
        lines += entry(name, other)
    return "\n".join([*lines, *sparse()]).rstrip() + "\n"


def main() -> None:
    """Judge the named growers, or all, and write the page."""
    PAGES.mkdir(parents=True, exist_ok=True)
    names = sys.argv[1:] or [*OTHERS, "sparse_upcycling"]
    for name in names:
        print(name, flush=True)
        if name == "sparse_upcycling":
            upcycle(UPCYCLED)
        else:
            judge(name)
    (PAGES / "README.md").write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
