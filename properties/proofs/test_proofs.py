"""The proofs build, assume what is written down, and are about Python's own maps.

The build needs Coq; what can be read off the sources is in `test_sources.py`.
"""

import itertools
import math
import os
import re
import shutil
import subprocess
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from growproof import clone as decoder
from growproof.decoder import Decoder, Kind, Rotary
from growproof.growth import Growth, Policies, layers_map, layers_of, plan
from growproof.scatter import place
from growproof.table import Axis, Row, factors, head_dim_map, heads_map, scales
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicLayer

from . import binary, graph, numbers
from .claims import FOLDER, claims
from .numbers import Table, cached, clone, coqs, draw, largest
from .roundings import ROUNDINGS

pytestmark = pytest.mark.xdist_group("proofs")

APT = "apt-get install coq libcoq-mathcomp-algebra libcoq-flocq make"
SOURCES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.v"))
PROOFS = [name for name in SOURCES if name not in ("Assumptions.v", "Extract/Maps.v")]


@dataclass(frozen=True)
class Build:
    """A finished build: where it is, and what each file printed."""

    folder: Path
    printed: dict[str, str]


def missing() -> list[str]:
    """What the build needs and this machine lacks."""
    absent = [tool for tool in ("coqc", "make") if shutil.which(tool) is None]
    if absent:
        return absent
    where = subprocess.run(["coqc", "-where"], capture_output=True, text=True)
    libraries = Path(where.stdout.strip()) / "user-contrib"
    needed = ("mathcomp/algebra", "Flocq")
    return [name for name in needed if not (libraries / name).is_dir()]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Everything compiled once, in a copy of the folder: .ci/run has made one, or here."""
    if absent := missing():
        message = f"the proofs need {', '.join(absent)}: {APT}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    made = os.environ.get("GROWPROOF_PROOFS")
    folder = Path(made) if made else compiled(tmp_path_factory.mktemp("proofs"))
    other = [
        n for n in SOURCES if (folder / n).read_bytes() != (FOLDER / n).read_bytes()
    ]
    assert other == []
    told = (folder / "build.log").read_text()
    sections = re.split(r"^COQC (\S+)\n", told, flags=re.MULTILINE)
    printed = dict(zip(sections[1::2], sections[2::2], strict=True))
    return Build(folder, printed)


def compiled(folder: Path) -> Path:
    """A new folder with the sources, what `make` makes of them, and what it says."""
    for name in [*SOURCES, "_CoqProject", "Makefile"]:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(FOLDER / name, folder / name)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-j1"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (folder / "build.log").write_text(done.stdout)
    return folder


def by_theorem(text: str) -> dict[str, str]:
    """What Assumptions.v prints about each theorem, whatever the line breaks."""
    parts = re.split(r"^\d+ (\w+):\n", text, flags=re.MULTILINE)
    return {
        k: " ".join(v.split()) for k, v in zip(parts[1::2], parts[2::2], strict=True)
    }


def test_assumptions_are_the_expected_ones(build: Build) -> None:
    """Print Assumptions of every main theorem says what is committed."""
    expected = (FOLDER / "assumptions.expected").read_text()
    assert by_theorem(expected).keys() == {claim.name for claim in claims()}
    assert by_theorem(build.printed["Assumptions.v"]) == by_theorem(expected)


def test_proofs_print_no_warnings(build: Build) -> None:
    """A proof file is silent: what it prints would be a leftover or a warning."""
    assert {name: build.printed[name] for name in PROOFS if build.printed[name]} == {}


def test_the_picture_shows_what_rests_on_what(build: Build) -> None:
    """docs/theorems.svg: the theorems, and no arrow too many or too few."""
    names, edges = graph.shown(graph.PICTURE.read_text())
    truth = graph.rests_on(build.folder)
    assert names == graph.drawn_names()
    assert edges <= truth
    assert graph.closure(edges) == graph.closure(truth)
    assert ("llama_lossless", "zero_insertion") in truth


def maps(build: Build, pattern: str = "maps*.out") -> list[list[int]]:
    """The rows that Extract/Maps.v evaluated: tag, G, R, R', K, K', split, the map."""
    text = "".join(path.read_text() for path in sorted(build.folder.glob(pattern)))
    rows = [[ord(c) - 64 for c in row] for row in re.findall(r'"(.*?)"', text)]
    return [[32 * a + b for a, b in zip(x[::2], x[1::2], strict=True)] for x in rows]


def test_python_maps_are_the_proved_maps(build: Build) -> None:
    """growproof.table's maps, on thousands of shapes, are those of AxisMaps.v."""
    checked = {0: 0, 1: 0, 2: 0}
    for tag, groups, repeats, repeats_new, k, k_new, flag, *proved in maps(build):
        split = bool(flag)
        axis = heads_map(
            groups,
            repeats,
            k,
            repeats_new=repeats_new,
            head_dim_new=k_new,
            split=split,
        )
        assert proved == (head_dim_map(k, k_new, split) if tag == 0 else axis)
        checked[tag] += 1
    assert checked == {0: 66, 1: 264, 2: 2376}


SMALLEST = Decoder(
    vocab=1, hidden=1, heads=1, groups=1, head_dim=2, mlp=1, layers=1, eps=1e-5,
    norm_size=1, kinds=(Kind(rotary=Rotary(theta=1e4, dims=2)),),
)  # fmt: skip


def shape(**sizes: int) -> Decoder:
    """A Decoder of these sizes, all else as small as can be; its rotary turns all lanes."""
    turned = Kind(rotary=Rotary(theta=1e4, dims=sizes.get("head_dim", 2)))
    return replace(SMALLEST, **sizes, kinds=(turned,))


def places(axis: Axis, old: Decoder, new: Decoder, **policies: Any) -> list[int]:
    """Old index → new index along an axis, as growproof.scatter.place has it."""
    row = Row((axis,), axis)
    growth = Growth(old=old, new=new, policies=Policies(norm="scaled", **policies))
    x = torch.arange(1, math.prod(factors(old)[axis]) + 1)
    y = place(x, row, growth)
    return [int((y == i).nonzero()[0, 0]) for i in x]


def way(tag: int, a: int, b: int, c: int, d: int) -> list[int] | None:
    """growproof's map of a way of fitting; None where it repeats heads less often."""
    if tag == 0:
        old, new = shape(heads=a * b, groups=a), shape(heads=a * d * c, groups=a * d)
        fits = d <= b and -(-b // d) <= c and Growth(old=old, new=new).copies == d
        return places("head", old, new) if fits else None
    if tag == 1:
        return places("mlp", shape(mlp=a * b), shape(mlp=a * c), spread=a)
    if tag == 2:
        return layers_map(b, layers_of(b, f"every:{a}"), f"every:{a}")
    lanes, more = shape(head_dim=b), shape(head_dim=a * b)
    return places("lane", lanes, more, rotary="between")


def test_python_ways_are_the_proved_ones(build: Build) -> None:
    """Heads dealt out, blocks, layers, lanes between: as Dealt.v and Fitting.v have them."""
    checked = Counter[int]()
    for tag, a, b, c, d, *proved in maps(build, "ways.out"):
        found = way(tag, a, b, c, d)
        assert found in (None, proved), (tag, a, b, c, d)
        checked[tag] += found is not None
    assert checked == {0: 97, 1: 64, 2: 60, 3: 12}


@pytest.mark.parametrize("qk_norm", ["lane", "head", "whole"])
def test_python_scales_of_query_and_key_norms_are_the_proved_ones(qk_norm: str) -> None:
    """QkNorm.v: s² n/n' = ε'/ε, and the norm's weight × √(n'/n) is √(K'/K), or 1 for k."""
    old = replace(
        shape(hidden=12, heads=4, groups=2, head_dim=4), qk_norm=qk_norm, norm_size=12
    )
    copied = 0
    for hidden, (groups, repeats), lanes in itertools.product(
        (12, 30), ((2, 2), (2, 3), (4, 1), (4, 2), (4, 3), (6, 1)), (4, 6)
    ):
        growth = plan(
            old, hidden=hidden, heads=groups * repeats, groups=groups, head_dim=lanes
        )
        by = scales(growth)
        copied += growth.copies > 1
        for part, root, heads in (
            ("q", growth.taller, growth.new.heads / old.heads),
            ("k", 1.0, groups / old.groups / growth.copies),
        ):
            more = growth.taller * (heads if qk_norm == "whole" else 1)
            assert by[part] ** 2 / more == pytest.approx(growth.new.eps / old.eps)
            assert by[f"{part}_norm"] ** 2 * more == pytest.approx(root)
    assert copied == 8


MODELS = 200


@pytest.fixture(scope="session")
def evaluated(build: Build) -> list[Table]:
    """The logits that Coq computes for each drawn model."""
    return coqs([draw(seed) for seed in range(MODELS)], build.folder)


def test_the_clone_is_the_proved_decoder(evaluated: list[Table]) -> None:
    """Whole decoders, both families: the same integers as the Coq decoder, each logit."""
    mine = [clone(draw(seed)) for seed in range(MODELS)]
    assert [i for i in range(MODELS) if mine[i] != evaluated[i]] == []
    assert sum(len(row) for table in evaluated for row in table) == MODELS * 4 * 5


def turned_back(x: Tensor, cos: Tensor, sin: Tensor, turn: Any = decoder.rotate) -> Any:
    """Rotary in the other direction."""
    return turn(x, cos, -sin)


def without_o_bias(layer: Any, name: str, x: Tensor, run: Any = decoder.Layer.linear):
    """A linear layer that forgets the bias of o."""
    y, lost = run(layer, name, x), layer.weight(f"{name}.bias")
    return y if lost is None or name != "o" else y - lost


def sees_the_next(length: int, window: Any, device: Any) -> Tensor:
    """A mask that lets each position look one ahead."""
    del window
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(2)


def chooses_all(x: Tensor, k: int, dim: int) -> Any:
    """Every expert is among the largest."""
    return largest(x, x.shape[dim], dim)


FAULTS = {
    "rotary": (decoder, "rotate", turned_back),
    "bias": (decoder.Layer, "linear", without_o_bias),
    "tiled": (Tensor, "repeat_interleave", lambda x, n, dim: x.repeat(1, n, 1, 1)),
    "mask": (decoder, "unseen", sees_the_next),
    "experts": (numbers, "largest", chooses_all),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_clone_is_seen(fault: str, evaluated: list[Table]) -> None:
    """A clone with one fault differs from the Coq decoder on many of the models."""
    with patch.object(*FAULTS[fault]):
        wrong = [clone(draw(seed)) != evaluated[seed] for seed in range(MODELS)]
    assert sum(wrong) > 20, sum(wrong)


BINARIES = 200
Computed = list[tuple[binary.Case, binary.Words, binary.Tables]]


@pytest.fixture(scope="session")
def clones() -> Computed:
    """Drawn models, the bits of their logits, and the tables of what the clone asked."""
    cases = [binary.draw(seed) for seed in range(BINARIES)]
    return [(case, *binary.computed(case)) for case in cases]


@pytest.fixture(scope="session")
def words(build: Build, clones: Computed) -> list[binary.Words]:
    """The bits of the logits that Coq computes for each drawn model in binary64."""
    return binary.coqs(
        [binary.term(c, tables) for c, _, tables in clones], build.folder
    )


def test_the_clone_is_the_proved_decoder_bit_for_bit(
    words: list[binary.Words], clones: Computed
) -> None:
    """Any decoder of the normal form in binary64: the clone's bits, each logit."""
    mine = [logits for _, logits, _ in clones]
    assert [i for i in range(BINARIES) if mine[i] != words[i]] == []
    assert sum(len(row) for table in words for row in table) == BINARIES * 3 * 3


def test_a_missing_value_is_seen(build: Build) -> None:
    """Without one value of exp every logit that asks for it is a NaN, and no number."""
    case = binary.draw(0)
    expected, tables = binary.computed(case)
    del tables["exp"][0.0]  # that of the largest score of each row
    [found] = binary.coqs([binary.term(case, tables)], build.folder)
    nan = 0x7FF8 << 48
    assert {n & nan for row in found for n in row} == {nan}
    assert nan not in {n & nan for row in expected for n in row}


def test_torch_roots_are_near(clones: Computed) -> None:
    """torch's √ is the nearest float or the one beside it (MKL's is not always the former):
    hence it is a table of values."""
    checked = 0
    for _, _, tables in clones:
        for x, y in tables["sqrt"].items():
            root = math.sqrt(x)
            assert y in (root, math.nextafter(root, 0), math.nextafter(root, 2 * root))
            checked += 1
    assert checked > BINARIES


# how many values of each field are drawn
FEATURES = {
    "norm": 2, "norm_bias": 2, "norm_offset": 2, "places": 3, "parallel": 3, "gated": 2,
    "qk_norm": 4, "activation": 5, "root_embedding": 2, "embedding_scale": 2,
    "residual_scale": 2, "logit_divisor": 2, "score": 2, "score_cap": 2, "logit_cap": 2,
    "positions": 2, "experts": 2, "active": 3, "renormalised": 2, "tied": 2, "eps": 3,
    "groups": 2, "repeats": 2, "head_dim": 2, "layers": 2,
}  # fmt: skip


def test_every_feature_is_drawn(clones: Computed) -> None:
    """Both values of each switch, every rope type, windows, biases, masked models."""
    drawn = [case.d for case, _, _ in clones]
    found = {name: len({getattr(d, name) for d in drawn}) for name in FEATURES}
    assert found == FEATURES
    kinds = [kind for d in drawn for kind in d.kinds]
    ropes = {kind.rotary and kind.rotary.kind for kind in kinds}
    assert ropes == {None, "default", "linear", "llama3"}
    assert {kind.window for kind in kinds} == {None, 2}
    assert any(d.rotary.dims not in (0, d.head_dim) for d in drawn)
    assert any(d.norm_size < d.hidden and d.norm == "layer" for d in drawn)
    assert {*"qkvo", "gate", "up", "down", "head"} == set().union(
        *(d.biases for d in drawn)
    )


@pytest.mark.parametrize("fault", ROUNDINGS)
def test_another_rounding_is_seen(fault: str, words: list[binary.Words]) -> None:
    """A clone that computes the same, or nearly, in another order has other bits."""
    cases = [binary.draw(seed) for seed in range(60)]
    with ExitStack() as stack:
        for change in ROUNDINGS[fault]:
            stack.enter_context(patch.object(*change))
        found = [binary.computed(case)[0] for case in cases]
    different = sum(a != b for a, b in zip(found, words, strict=False))
    assert different > 10, different


# those without experts: transformers has no Llama or StableLm that has some
CACHED = [s for s in range(80) if not draw(s).d.experts]


@pytest.fixture(scope="session")
def decoded(build: Build) -> list[Table]:
    """The logits that Coq computes token by token, with a cache."""
    return coqs([draw(seed) for seed in CACHED], build.folder, "cached_numbers")


def test_transformers_cache_is_the_proved_one(decoded: list[Table]) -> None:
    """Stock Llamas and StableLms, each token alone, with their own cache: the same integers."""
    assert len(CACHED) > 50
    assert [cached(draw(seed)) for seed in CACHED] == decoded


def forgets(self: Any, keys: Tensor, values: Tensor, *rest: Any) -> Any:
    """A cache in which all but the last two tokens are zero."""
    kept = UPDATE(self, keys, values, *rest)
    return tuple(
        F.pad(x[..., -2:, :], (0, 0, max(0, x.shape[-2] - 2), 0)) for x in kept
    )


UPDATE = DynamicLayer.update


def test_another_cache_is_seen(decoded: list[Table]) -> None:
    """A cache that forgets its first tokens has other integers."""
    with patch.object(DynamicLayer, "update", forgets):
        wrong = [cached(draw(seed)) for seed in CACHED]
    different = sum(a != b for a, b in zip(wrong, decoded, strict=True))
    assert different > len(CACHED) / 2, different
