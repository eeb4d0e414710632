"""What CONTRIBUTING, SECURITY and CITATION say is so."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
QUOTED = re.findall(
    r"<!-- (\S+) -->\n```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S
)


@pytest.mark.parametrize(("path", "block"), QUOTED, ids=[path for path, _ in QUOTED])
def test_a_quoted_block_is_in_its_file(path: str, block: str) -> None:
    """Word for word."""
    assert block in (ROOT / path).read_text()


def test_a_law_a_fault_and_a_family_are_quoted() -> None:
    """One worked example each."""
    assert [path for path, _ in QUOTED] == [
        "properties/laws/test_mlp.py",
        "properties/growers/known_bad.py",
        "reference/growproof/families.py",
    ]


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_what_is_named_is_there(name: str) -> None:
    """Links, and paths between backticks."""
    text = (ROOT / name).read_text()
    named = [x for x in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in x]
    named += re.findall(r"`((?:properties|integration|reference)/[^`\s]+)`", text)
    assert named
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_citation_is_of_this_version() -> None:
    """CITATION.cff: version and licence as in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == project["version"]
    assert cited["license"] == project["license"]
    assert cited["title"] == project["name"]
