"""A family from another package, found by its entry point: the whole suite runs over it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from growproof import clone
from growproof.decoder import GrowthError
from growproof.families import FAMILIES
from growproof.models import decoder_of, state_of
from transformers import AutoConfig

from properties.laws.models import make

OUTSIDE = Path(__file__).with_name("outside")
MODULE = "growproof_vaultgemma.py"
TINY = {
    "vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "head_dim": 4,
    "num_key_value_heads": 1, "intermediate_size": 6, "num_hidden_layers": 2,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    "attn_implementation": "eager",
}  # fmt: skip
IDS = torch.tensor([[1, 5, 2, 7]])


def installed(at: Path, module: str | None = None) -> Path:
    """The package as pip would leave it: its module, and what its pyproject says."""
    project = tomllib.loads((OUTSIDE / "pyproject.toml").read_text("utf-8"))["project"]
    (at / MODULE).write_text(module or (OUTSIDE / MODULE).read_text("utf-8"), "utf-8")
    info = at / f"growproof_vaultgemma-{project['version']}.dist-info"
    info.mkdir()
    about = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0.0\n"
    (info / "METADATA").write_text(about)
    lines: list[str] = []
    for group, entries in project["entry-points"].items():
        lines += [
            f"[{group}]",
            *(f"{name} = {value}" for name, value in entries.items()),
        ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return at


def growproof(site: Path, *words: str) -> tuple[int, str]:
    """`growproof …` where that package is installed: its exit code, and what it said."""
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "growproof.cli", *words],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, check=False, cwd=site,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def declared() -> Iterator[Callable[[str, str], None]]:
    """Run the package's module, edited, and forget the family afterwards."""
    text = (OUTSIDE / MODULE).read_text("utf-8")

    def run(old: str, new: str) -> None:
        edited = text.replace(old, new)
        assert edited != text
        exec(compile(edited, MODULE, "exec"), {})

    yield run
    FAMILIES.pop("vaultgemma")


# a law that replays committed cases of other families shows nothing of this one
OWN = "not where_faults_show and not worst_cases"


def test_the_whole_suite_runs_over_it(tmp_path: Path) -> None:
    """Every law that judges a grower, on VaultGemmas alone."""
    code, said = growproof(
        installed(tmp_path), "check", "growproof:grow", "--family=vaultgemma",
        "-p", "no:cacheprovider", "-m", "lossless or zero_padding or hygiene", "-k", OWN,
    )  # fmt: skip
    assert code == 0, said
    assert "domain: vaultgemma in" in " ".join(said.split()), said
    passed, axes = (
        re.search(r"(\d+) passed", said),
        re.findall(r"vaultgemma +(\d+)", said),
    )
    assert passed, said
    assert int(passed[1]) > 30
    assert axes == ["6"], "one line of the score: the logits along each of six axes"


def test_a_fault_in_its_table_is_seen(declared: Callable[[str, str], None]) -> None:
    """Norms that multiply by their weight, where VaultGemma adds one to it."""
    declared('"norm_offset": 1.0,', "")
    config = AutoConfig.for_model("vaultgemma", **TINY)
    model = make(config, seed=0)
    logits = clone.forward(decoder_of(config), state_of(model), IDS)["logits"]
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, logits, rtol=1e-2)


def test_a_forgotten_switch_is_refused_by_name(
    declared: Callable[[str, str], None],
) -> None:
    """A score cap that the table does not read is not ignored."""
    declared('"score_cap": lambda c: c.attn_logit_softcapping,', "")
    config = AutoConfig.for_model("vaultgemma", **TINY, attn_logit_softcapping=3.0)
    with pytest.raises(GrowthError, match=r"attn_logit_softcapping = 3\.0"):
        decoder_of(config)


def test_a_family_that_cannot_be_imported_is_an_error(tmp_path: Path) -> None:
    """Who broke it and how, not silence: the family would be refused for no reason."""
    site = installed(tmp_path, "import nothing_of_the_kind")
    code, said = growproof(site, "grow", "nowhere", "grown", "--hidden-size=8")
    assert code == 4, said
    assert "growproof-vaultgemma" in said
    assert "nothing_of_the_kind" in said


def test_it_is_not_growproofs_own() -> None:
    """Else the package would show nothing."""
    assert "vaultgemma" not in FAMILIES
