"""What can be read off the proofs' sources: nothing is admitted, every claim is there."""

import re

import pytest
from growproof.families import FAMILIES
from transformers import CONFIG_MAPPING

from . import graph
from .claims import FOLDER, built, claims, claims_of
from .test_proofs import SOURCES

pytestmark = pytest.mark.xdist_group("proofs")

ADMISSIONS = (
    r"Admitted|admit|give_up|Axioms?|Parameters?|Conjectures?|Admit|todo"
    r"|bypass_check|Unset\s+(?:Guard|Positivity|Universe)\s+Checking|type_in_type"
)
LOCAL = r"Variables?|Hypothes[ie]s|Context"


def uncommented(text: str) -> str:
    """A .v file without its comments, which nest, and without its strings."""
    depth, kept = 0, []
    for token in re.split(r'(\(\*|\*\)|"[^"]*")', text):
        depth += (token == "(*") - (token == "*)")
        if depth == 0 and token != "*)" and not token.startswith('"'):
            kept.append(token)
    return "".join(kept)


def admissions(text: str) -> list[str]:
    """Whatever in a .v file is assumed and not proved."""
    code = uncommented(text)
    found = [m[0] for m in re.finditer(rf"\b(?:{ADMISSIONS})\b", code)]
    depth = 0
    for m in re.finditer(rf"\b(Section|Module|End|{LOCAL})\s+\w+|\bContext\b", code):
        depth += (m[1] == "Section") - (m[1] == "End")
        if depth < 1 and m[1] not in ("Section", "End"):
            found.append(m[0])
    return found


def listed(assumptions: str) -> list[str]:
    """The theorems whose assumptions Assumptions.v prints, in order."""
    return re.findall(r"^Print Assumptions (\w+)\.", assumptions, re.MULTILINE)


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_admitted(name: str) -> None:
    """No axiom, nothing admitted, and no hypothesis outside a section."""
    assert admissions((FOLDER / name).read_text()) == []


@pytest.mark.parametrize(
    "fault",
    [
        "Lemma a : False. Proof. Admitted.",
        "Lemma a : False. Proof. admit. Qed.",
        "Axiom a : False.",
        "Section S. Variable n : nat. End S. Hypothesis a : False.",
        "Section S. Section U. End U. End S. Variables a b : False.",
        "Context (a : False).",
        "Parameter a : False.",
        'Definition s := "(*". Axiom a : False. Definition t := "*)".',
        "Unset Guard Checking.",
    ],
)
def test_an_admission_is_seen(fault: str) -> None:
    """Each way of proving nothing is found, and none of them in a comment."""
    assert admissions(fault)
    assert not admissions(f"(* (* {fault.replace('*', '')} *) *)")


def test_every_file_is_built() -> None:
    """_CoqProject lists every .v file, once, and only files that exist."""
    assert sorted(built()) == SOURCES


def test_every_main_theorem_is_listed() -> None:
    """Assumptions.v prints the assumptions of all main theorems and of no other."""
    names = [claim.name for claim in claims()]
    assert listed((FOLDER / "Assumptions.v").read_text()) == names
    assert len(set(names)) == len(names)


def test_all_eleven_claims_are_there() -> None:
    """Each of the numbers 1 to 11 has a main theorem, each with one whole sentence."""
    found = claims()
    assert {claim.number for claim in found} == set(range(1, 12))
    for claim in found:
        assert re.fullmatch(r"[A-Z][^.]*(?:\.\d[^.]*)*\.", claim.sentence), claim


@pytest.mark.parametrize(
    "fault",
    [
        "(** MAIN 2 a: No theorem below. *)",
        "(** MAIN 2 a: Another name. *)\nTheorem b : True.",
        "(** MAIN 2 a: Only a lemma. *)\nLemma a : True.",
        "(** MAIN a: No number. *)\nTheorem a : True.",
        "(** MAIN 2 a: Something between. *)\nLemma b : True.\nTheorem a : True.",
        "(* MAIN 2 a: One star. *)\nTheorem a : True.",
    ],
)
def test_a_claim_without_its_theorem_is_seen(fault: str) -> None:
    """A MAIN comment that is not directly above the theorem it names is refused."""
    with pytest.raises(ValueError, match="MAIN comment"):
        claims_of(fault, "fault.v")


ROW = re.compile(r"((?:\|\s*\w+\s*)+)=>\s*Family (.*)")
QK_NORMS = {"": "NoNorm", "lane": "OfHead", "whole": "OfAll", "head": "LayerOfHead"}


def proved_families(together: bool, normed: bool) -> dict[str, list[str]]:
    """Model type → the switches that Families.v gives it, as they are written there."""
    text = (FOLDER / "Families.v").read_text()
    table = text[text.index("Definition family_of") : text.index("  end.")]
    number = {
        "(together + together)": str(2 * together),
        "together": str(int(together)),
        "(if normed then LayerOfHead else NoNorm)": QK_NORMS["head" if normed else ""],
    }
    found: dict[str, list[str]] = {}
    for names, line in ROW.findall(table):
        words = re.findall(r"\(.*?\)|\w+", line)
        said = [number.get(word, word) for word in words]
        found |= dict.fromkeys(re.findall(r"\w+", names), said)
    return found


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_python_families_are_the_proved_ones(together: bool, normed: bool) -> None:
    """The table of families in Families.v says of each what its decoder says."""
    proved = proved_families(together, normed)
    assert proved.keys() == FAMILIES.keys()
    for name, family in FAMILIES.items():
        config = CONFIG_MAPPING[name]()
        if hasattr(config, "use_parallel_residual"):
            config.use_parallel_residual = together
        if name == "stablelm":  # growproof refuses a Phi with qk_layernorm
            config.qk_layernorm = normed
        d = family.decoder(config)
        switches = [
            d.norm == "layer", d.places != "post", d.places != "pre", d.parallel,
            QK_NORMS[d.qk_norm], d.gated, d.norm_offset == 1, d.root_embedding,
        ]  # fmt: skip
        said = [str(x).lower() if isinstance(x, bool) else str(x) for x in switches]
        assert proved[name] == said, name


def test_an_arrow_that_is_missing_would_be_seen() -> None:
    """A picture without one of its arrows has another closure."""
    _, edges = graph.shown(graph.PICTURE.read_text())
    for edge in edges:
        assert graph.closure(edges - {edge}) != graph.closure(edges)
