"""Other people's growers get the verdict of their committed score page.

    python -m integration.test_others [NAME ...]     # judge anew, and write the pages

The pages in results/others are runs of all laws in the quick profile; here some
laws of the whole decoder and of the norms are run again, and must fail where it says so.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .others import WITHOUT

ROOT = Path(__file__).parent.parent
PAGES = Path(__file__).parent / "results" / "others"
# What is run again: the logits, one axis of width and one that leaves the norms alone,
# and eps. Other laws fail or not by what is drawn where a grower is wrong only at times.
AGAIN = ("properties/laws/test_decoder.py", "properties/laws/test_norms.py")
KEYWORDS = "(logits_are_unchanged and (hidden or mlp)) or eps_grows_along"
LAWS = r"logits_are_unchanged\[\w+-(hidden|mlp)\]|eps_grows_along"


def judge(name: str, *arguments: str) -> str:
    """The end of pytest's output for a grower: its score page and what failed."""
    # the corpus grows with every long run: its cases are no part of a page
    without = [word for feature in WITHOUT[name] for word in ("--without", feature)]
    command = [
        sys.executable, "-m", "pytest", *arguments, "--ignore=properties/proofs",
        "--ignore=properties/power/test_corpus.py", "-q",
        "-p", "no:cacheprovider", "--tb=no", "-rf", "--grower", f"integration.others:{name}",
        *without,
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode in (0, 1), done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout[done.stdout.index("left out: ") :]


def page(name: str) -> str:
    """The committed form: what was asked, the score, the laws that failed."""
    text = judge(name, "properties")
    flags = "".join(f" --without {feature}" for feature in WITHOUT[name])
    body = re.sub(r"^(FAILED \S+).*$", r"\1", text, flags=re.M)
    body = re.sub(r" in [\d.]+s.*$", "", body, flags=re.M)
    return f"growproof check integration.others:{name}{flags}\n\n{body}"


def failed(text: str) -> set[str]:
    """The ids of the failed laws."""
    return set(re.findall(r"^FAILED (\S+)", text, flags=re.M))


@pytest.mark.parametrize("name", WITHOUT)
def test_the_verdict_is_the_committed_one(name: str) -> None:
    """The same laws fail as on the page, of those that are run again."""
    text = (PAGES / f"{name}.txt").read_text(encoding="utf-8")
    expected = {law for law in failed(text) if re.search(LAWS, law)}
    assert failed(judge(name, *AGAIN, "-k", KEYWORDS)) == expected


def test_the_pages_say_what_is_known_of_these_growers() -> None:
    """LEMON, HyperCloning and LLaMA-Pro are lossless; the article's script is not."""
    found = {
        name: failed((PAGES / f"{name}.txt").read_text("utf-8")) for name in WITHOUT
    }
    for name in ("hypercloning", "lemon", "llama_pro"):
        assert not any("logits" in law or "certified" in law for law in found[name]), (
            name
        )
    assert any("eps_grows" in law for law in found["article_mended"])
    rotary = (
        "properties/laws/test_attention.py::test_rotary_keeps_pairs_and_frequencies"
    )
    assert rotary in found["article"]
    assert rotary not in found["article_mended"]


def test_they_import_nothing_of_growproof() -> None:
    text = Path(__file__).with_name("others.py").read_text(encoding="utf-8")
    assert not re.search(r"^\s*(from|import) (growproof|properties|\.)", text, re.M)


def test_every_grower_is_explained() -> None:
    text = (PAGES / "README.md").read_text(encoding="utf-8")
    for name in WITHOUT:
        assert f"`{name}`" in text
        assert f"({name}.txt)" in text


if __name__ == "__main__":
    for chosen in sys.argv[1:] or WITHOUT:
        PAGES.mkdir(parents=True, exist_ok=True)
        (PAGES / f"{chosen}.txt").write_text(page(chosen), encoding="utf-8")
