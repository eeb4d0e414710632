"""The gate, as its users run it: other people's growers, in real processes."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest

from ..errors import report, storage

# A grower that knows Llama's MLP alone, and imports nothing of growproof.
WIDER_MLP = """
import copy, warnings
import torch, transformers

def grow(model, target, factor=1.0):
    warnings.warn("a warning is no verdict", FutureWarning)
    if model.config.model_type != "llama":
        raise NotImplementedError("only Llama")
    config = copy.deepcopy(model.config)
    old, config.intermediate_size = config.intermediate_size, target.get(
        "intermediate_size", config.intermediate_size)
    grown = transformers.LlamaForCausalLM(config)  # .to(dtype) would round the rotary
    generation = copy.deepcopy(model.generation_config)
    for name, p in grown.named_parameters():
        q = model.get_parameter(name)
        p.data = torch.zeros(p.shape, dtype=q.dtype)
        p.data[tuple(slice(n) for n in q.shape)] = q.data
        p.requires_grad_(q.requires_grad)
    for layer in grown.model.layers:
        layer.mlp.down_proj.weight.data.mul_(factor)
    grown.generation_config = generation
    return grown.train(model.training)

def grow_wrong(model, target):
    return grow(model, target, factor=1 + 1e-5)

def wrong_far(model, target):
    grown = grow(model, target)
    if model.config.max_position_embeddings > 100_000:
        grown.model.layers[0].mlp.down_proj.weight.data[1] *= 1.001
    return grown

def raises(model, target):
    raise RuntimeError("out of luck")

def wrong_signature(model):
    return model

def interrupted(model, target, calls=[]):
    calls.append(target)
    if len(calls) > 18:
        raise KeyboardInterrupt
    return grow(model, target)
"""

# The same, as a program on checkpoint directories: no torch, so that it starts fast.
PROGRAM = """
import json, shutil, sys
from pathlib import Path
import numpy
from safetensors.numpy import load_file, save_file

source, destination, target = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
config = json.loads((source / "config.json").read_text()) | target
state = load_file(source / "model.safetensors")
for name, w in state.items():
    if ".mlp." in name:
        shape = list(w.shape)
        axis = 1 if "down_proj.weight" in name else 0
        if "down_proj.bias" not in name:
            shape[axis] = config["intermediate_size"]
        new = numpy.zeros(shape, w.dtype)
        new[tuple(slice(n) for n in w.shape)] = w
        state[name] = new
destination.mkdir()
for file in source.glob("generation_config.json"):
    shutil.copy(file, destination)
(destination / "config.json").write_text(json.dumps(config))
save_file(state, destination / "model.safetensors", metadata={"format": "pt"})
"""

ONLY_MLP = [
    f"--without={feature}"
    for feature in ("stablelm", "hidden", "heads", "groups", "head_dim", "layers")
]
SUITE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory into which pip has installed a package with growers of its own."""
    folder = tmp_path_factory.mktemp("elsewhere")
    wheel = folder / "othergrowers-1.0-py3-none-any.whl"
    info = "othergrowers-1.0.dist-info"
    files = {
        "othergrowers.py": WIDER_MLP,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: othergrowers\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in files))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps",
         "--target", str(folder / "site"), str(wheel)],
        check=True,
    )  # fmt: skip
    (folder / "mygrow.py").write_text(PROGRAM)
    return folder


def run(
    folder: Path, *command: str, columns: int = 100
) -> subprocess.CompletedProcess[str]:
    """A command run in `folder`, with the installed package importable."""
    path = os.pathsep.join((str(folder / "site"), os.environ.get("PYTHONPATH", "")))
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        check=False,
    )


def check(
    folder: Path, *arguments: str, columns: int = 100
) -> subprocess.CompletedProcess[str]:
    """`growproof check …`, the MLP laws alone."""
    laws = str(SUITE / "laws" / "test_mlp.py")
    words = ("-m", "growproof.cli", "check", *arguments, laws, *ONLY_MLP)
    return run(folder, *words, columns=columns)


def test_plain_pytest_passes_a_right_grower(elsewhere: Path, tmp_path: Path) -> None:
    """pytest SUITE --grower MODULE:CALLABLE: exit 0, and all that is left out is said."""
    junit = tmp_path / "junit.xml"
    done = run(
        elsewhere, "-m", "pytest", str(SUITE), "--grower", "othergrowers:grow",
        "-k", "mlp or saves", *ONLY_MLP, f"--junitxml={junit}",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "grower: othergrowers:grow" in done.stdout
    assert "without: stablelm, hidden, heads, groups, head_dim, layers" in done.stdout
    assert " tests of growproof itself" in done.stdout
    assert "lossless" in done.stdout.split("score")[-1]
    suites = ET.parse(junit).getroot()
    names = {case.get("name") for case in suites.iter("testcase")}
    assert "test_mlp_maps_padded_to_padded" in names
    said = {p.get("name") for p in suites.iter("property")}
    assert {"promise", "family", "axis", "tier"} <= said


@pytest.fixture(scope="module")
def rejected(elsewhere: Path) -> subprocess.CompletedProcess[str]:
    """A run on down_proj off by 1e-5, 80 columns wide, that leaves all it can leave."""
    return check(
        elsewhere, "--repro-dir=repro", "--write-xfails=written.txt",
        "--errors-save=errors.json", "othergrowers:grow_wrong", columns=80,
    )  # fmt: skip


def test_a_wrong_grower_is_told_on_one_screen(rejected) -> None:
    """Exit 1; one block for the cause, 60 lines at most; the last line names it."""
    assert rejected.returncode == 1, rejected.stdout
    out = rejected.stdout
    for text in (
        "law         mlp'(pad x) = pad(mlp x)",
        "first wrong layers.0.mlp: off by",
        "mlp_maps_padded_to_padded",
        "smallest    llama, hidden",
        "python repro/repeat_mlp_maps_padded_to_padded.py",
        "llama in float64, up to vocabulary",
    ):
        assert text in out, text
    last = out.splitlines()[-1]
    assert last.startswith("othergrowers:grow_wrong violates zero_padding on llama")
    assert "down_proj is 1.00001 times what it should be" in last
    assert len(out.splitlines()) <= 60
    assert "@given" not in out
    assert "it raises" not in out


def test_scripts_repeat_the_law_that_failed(rejected, elsewhere: Path) -> None:
    """As printed, from where it was printed: 1 while wrong, 0 once mended, 2 if broken."""
    path = "repro/repeat_mlp_maps_padded_to_padded.py"
    text = (elsewhere / path).read_text()
    for grower, code, said in (
        ("grow_wrong", 1, "Violation: layers.0.mlp differs"),
        ("grow", 0, "it holds on this example"),
        ("no_such", 2, "cannot be run: cannot import the grower"),
    ):
        script = text.replace("othergrowers:grow_wrong", f"othergrowers:{grower}")
        (elsewhere / path).write_text(script)
        done = run(elsewhere, path)
        assert done.returncode == code, done.stdout + done.stderr
        assert said in done.stdout
    assert not [*(elsewhere / "repro").glob("test_*")]  # pytest collects none


def test_an_interrupted_run_says_nothing_of_the_grower(elsewhere: Path) -> None:
    """Neither that it conforms nor that it violates: how far the run came."""
    done = check(elsewhere, "othergrowers:interrupted", "-n", "0")
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"no verdict: interrupted after [1-9]\d* of \d+ tests, of which 0 failed", last
    ), done.stdout
    assert done.returncode not in (0, 1)


def test_workers_give_the_same_verdict(elsewhere: Path) -> None:
    """-n 2: the same failures as without, and exit 1."""
    alone = check(elsewhere, "othergrowers:grow_wrong", "-q", "-n", "0")
    spread = check(elsewhere, "othergrowers:grow_wrong", "-q", "-n", "2")

    assert (alone.returncode, spread.returncode) == (1, 1)
    last = [done.stdout.splitlines()[-1] for done in (alone, spread)]
    assert last[0] == last[1]
    assert "down_proj is 1.00001 times what it should be" in last[0]


def test_a_law_that_draws_nothing_names_the_part(elsewhere: Path) -> None:
    """A fault that shows with the constants of a published model alone."""
    words = ("othergrowers:wrong_far", "-q", "-k", "published", *ONLY_MLP)
    kept = ("--repro-dir", "far")
    done = run(elsewhere, "-m", "growproof.cli", "check", *words, *kept)
    assert done.returncode == 1
    path = "far/repeat_constants_of_published_models_are_heeded_llama.py"
    assert f"python {path}" in done.stdout
    assert run(elsewhere, path).returncode == 1
    text = (elsewhere / path).read_text()
    (elsewhere / path).write_text(text.replace("wrong_far", "grow"))
    assert run(elsewhere, path).returncode == 0
    last = done.stdout.splitlines()[-1]
    assert "violates lossless on llama mlp: down_proj differs" in last
    assert "; intermediate_size 4→8; loud weights" in " ".join(done.stdout.split())


def test_failures_are_kept_in_the_example_database(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under CI too, `thorough` first repeats what `.hypothesis` has from a failed run."""
    monkeypatch.setenv("CI", "true")  # where Hypothesis's own profile keeps nothing
    thorough = (
        "othergrowers:grow_wrong", "--hypothesis-profile=thorough", "-k", "mlp_maps",
        "--hypothesis-show-statistics",
    )  # fmt: skip
    first = check(elsewhere, *thorough)
    assert "during generate phase" in first.stdout
    assert any((elsewhere / ".hypothesis/examples").rglob("*"))
    again = check(elsewhere, *thorough)
    assert again.returncode == first.returncode == 1
    assert "during reuse phase" in again.stdout
    assert "during generate phase" not in again.stdout


def test_program_on_directories_is_a_grower(elsewhere: Path) -> None:
    """--grower-command: a program that never sees torch passes the MLP laws."""
    command = f"{sys.executable} mygrow.py {{source}} {{destination}} {{target_json}}"
    done = run(
        elsewhere, "-m", "growproof.cli", "check", "--grower-command", command,
        str(SUITE / "laws" / "test_mlp.py"), "-k", "mlp_maps", *ONLY_MLP,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("othergrowers:raises",), "is broken, not wrong: it raises on the smallest"),
        (("--without", "wings"), "--without knows no wings"),
        (("--no-such-option",), "unrecognized arguments"),
        (
            ("--witout", "layers"),
            "there is no option --witout, did you mean --without?",
        ),
        (("-m", "losless"), "-m knows no losless, did you mean lossless?"),
        (("--errors-compare", "missing.json"), "missing.json"),
    ],
)
def test_usage_errors_exit_4(elsewhere: Path, arguments, message: str) -> None:
    """Whatever cannot be run is exit 4 with its reason, and no law is judged."""
    done = check(elsewhere, *arguments)
    assert done.returncode == 4, done.stdout + done.stderr
    assert message in done.stdout + done.stderr
    assert "passed" not in done.stdout


def test_a_run_that_checks_nothing_is_not_0(elsewhere: Path) -> None:
    """-k matches no law: exit 4."""
    done = check(elsewhere, "-k", "no_such_law")
    assert done.returncode == 4, done.stdout
    assert "-k 'no_such_law' selects no law" in done.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "--score=nowhere/score.json",
            "nowhere/score.json: there is no such directory",
        ),
        ("--write-xfails=nowhere/x", "nowhere/x: there is no such directory"),
        ("--junitxml={file}/junit.xml", "was not written"),
    ],
)
def test_what_cannot_be_stored_is_no_verdict(
    option: str, said: str, elsewhere: Path, tmp_path: Path
) -> None:
    """Exit 4 and a sentence, before the run where it is known then."""
    file = tmp_path / "file"
    file.touch()
    done = check(elsewhere, "-k", "embedding_is_padded", option.format(file=file))
    assert done.returncode == 4, done.stdout
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def expected(folder: Path, *lines: str) -> str:
    """A file of expected failures."""
    path = folder / "xfails.txt"
    path.write_text("\n".join(lines) + "\n")
    return f"--xfails={path}"


def test_expected_failures(rejected, elsewhere: Path, tmp_path: Path) -> None:
    """Written, they make the run pass; each way of being out of date makes it fail."""
    assert rejected.returncode == 1
    path, wrong = elsewhere / "written.txt", ("othergrowers:grow_wrong",)
    reason = "| down_proj is 1.00001 times what it should be |"
    assert f"test_mlp_maps_padded_to_padded {reason}" in path.read_text()
    assert check(elsewhere, *wrong, f"--xfails={path}").returncode == 0
    again = check(elsewhere, *wrong, f"--write-xfails={path}")
    assert again.returncode == 4
    assert "exists" in again.stdout + again.stderr
    lines = [
        line.rsplit("|", 1)[0] + "| 1e-9" if line.startswith("test_mlp_maps") else line
        for line in path.read_text().splitlines()
    ]
    worse = check(elsewhere, *wrong, expected(tmp_path, *lines))
    assert worse.returncode == 1
    assert "worse than its ceiling" in worse.stdout


def test_expected_failures_out_of_date(elsewhere: Path, tmp_path: Path) -> None:
    """An entry that passes, matches nothing or has expired fails the run."""
    stale = expected(
        tmp_path,
        "test_mlp_maps_padded_to_padded | it was wrong once",
        "test_no_such_law | a typing error",
        "test_gate_and_up_are_padded | long ago | | 2020-01-01",
    )
    done = check(elsewhere, "othergrowers:grow", "-q", stale)
    assert done.returncode == 1
    for text in (
        "and passes: remove its line",
        "matches no law: test_no_such_law",
        "expired on 2020-01-01",
    ):
        assert text in done.stdout, text


def test_gate_stores_the_errors_of_another_grower(
    elsewhere: Path, tmp_path: Path
) -> None:
    """--errors-save names the grower, and a baseline of another grower is exit 4."""
    path = tmp_path / "errors.json"
    done = check(elsewhere, "othergrowers:grow", f"--errors-save={path}")
    assert done.returncode == 0, done.stdout
    stored = json.loads(path.read_text())
    assert stored["environment"]["grower"] == "othergrowers:grow"
    other = check(elsewhere, "othergrowers:grow_wrong", f"--errors-compare={path}")
    assert other.returncode == 4, other.stdout


def test_a_wrong_grower_leaves_a_red_ledger(
    rejected, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its failures, their cause and the score are stored; the report of it is red."""
    path = elsewhere / "errors.json"
    run = storage.load(path).run
    broken = {failure.law for failure in run.failures}
    assert broken
    assert all(law in rejected.stdout for law in broken)
    told = {failure.cause for failure in run.failures}  # or, of the rest, what was seen
    assert "down_proj is 1.00001 times what it should be" in told
    assert all("down_proj" in text or "mlp differs by" in text for text in told)
    assert sum(row.failed for row in run.score) == run.failed == len(run.failures) > 0
    assert report.main([str(path)]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert "othergrowers:grow_wrong violates" in first
