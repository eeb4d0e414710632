"""Bad input: one kind of error, nothing written, and no crash or hang, mutated or made."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from growproof import reading
from growproof.cli import main
from growproof.growth import Policies
from growproof.models import plan_model
from hypothesis import given, settings
from hypothesis import strategies as st

from . import fuzz

HERE = Path(__file__).parent
RECORD = json.loads((HERE / "results" / "fuzz.json").read_text())
DEEP = "[" * 3000 + "]" * 3000
# what stands in a file → what is said: its field, what was got, what was expected
CONFIGS: dict[str, tuple[Any, str]] = {
    "list": ([1], "got [1], expected a JSON object"),
    "null": (None, "got None, expected a JSON object"),
    "type": ({"model_type": {"a": 1}}, "model_type: got {'a': 1}, expected a model type"),
    "float": ({"hidden_size": 16.5}, "hidden_size"),
    "text": ({"num_hidden_layers": "2"}, "num_hidden_layers"),
    "many": ({"num_hidden_layers": 10**9}, "got 1000000000, expected 65,536 at most"),
    "huge": ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta: got 1000"),
    "rope": ({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}, "rope_theta: got 'x'"),
    "eps": ({"rms_norm_eps": 0.0}, "eps: got 0"),
    "dtype": ({"dtype": "a/b"}, "a/b"),
    "heads": ({"num_attention_heads": 0}, "got "),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the inputs are written."""
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_valid_files_are_read(name: str, tmp_path: Path) -> None:
    """Without an edit each is read: a refusal of all would find nothing."""
    target = fuzz.TARGETS[name]()
    (tmp_path / "a.bin").write_bytes(b"")
    assert target.valid
    for value in target.valid:
        if name == "safetensors":
            data = fuzz.framed(json.dumps(value).encode())
        else:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
        (tmp_path / target.name).write_bytes(data)
        target.read(tmp_path)


@pytest.mark.parametrize("name", fuzz.TARGETS)
@settings(max_examples=40)
@given(draw=st.randoms(use_true_random=False))
def test_no_file_makes_a_reader_crash_or_hang(
    folders: Path, name: str, draw: random.Random
) -> None:
    """Read, or refused by the documented error in one line."""
    target = fuzz.made(name)
    folder = folders / name
    folder.mkdir(exist_ok=True)
    (folder / "a.bin").write_bytes(b"")
    assert fuzz.outcome(target, folder, draw) in ("read", "refused")
    assert {p.name for p in folder.iterdir()} == {"a.bin", target.name}


def test_the_record_is_of_a_long_run_without_findings() -> None:
    """What `python -m integration.fuzz --record` left."""
    rows = RECORD["targets"]
    assert rows.keys() == fuzz.TARGETS.keys()
    assert not RECORD["findings"]
    assert RECORD["inputs"] == sum(row["inputs"] for row in rows.values()) >= 200_000
    said = " ".join((HERE.parent / "README.md").read_text().split())
    assert f"the fuzz run so far is {RECORD['inputs']:,} inputs" in said
    for row in rows.values():
        assert row["read"] > 0
        assert row["refused"] > 0
        assert row["read"] + row["refused"] == row["inputs"]


@pytest.mark.parametrize(
    ("said", "expected"), [(1, "wrong"), (2, "wrong"), (3, "left")]
)
def test_what_a_run_would_find(
    monkeypatch: pytest.MonkeyPatch, said: int, expected: str
) -> None:
    """A crash, a hang and a file that is left are findings: planted here."""

    def read(folder: Path) -> None:
        if said == 1:
            raise KeyError("weight_map")
        while said == 2:
            pass
        (folder / "core").write_text("")

    target = fuzz.Target("xfails.txt", fuzz.lines, lambda data, _: data, read)
    monkeypatch.setattr(fuzz, "made", lambda name: target)
    monkeypatch.setattr(fuzz, "LIMIT", 0.05)
    found = fuzz.run(["xfails"], 1, 0)
    assert found["targets"]["xfails"]["wrong"] == 1
    (finding,) = found["findings"]
    words = {1: "KeyError: 'weight_map'", 2: "Hang: more than", 3: "left ['core']"}
    assert finding["said"].startswith(words[said])
    assert expected in ("wrong", "left")


def test_many_layers_take_time_in_proportion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most layers that are read, and one more: each rotary embedding is looked at once.

    A look at each layer's, and at all old layers for each new one, took minutes.
    """
    looked, check = [], reading.check_values
    monkeypatch.setattr(
        reading, "check_values", lambda part, path: looked.append(check(part, path))
    )
    fields = json.loads((HERE / "llama" / "config.json").read_text())
    fields["num_hidden_layers"] = reading.MOST - 1
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with fuzz.limited(fuzz.LIMIT):
        config = reading.config_in(tmp_path)
        sizes = {"num_hidden_layers": reading.MOST}
        growth = plan_model(config, sizes, Policies(depth="interleave"))
    assert growth.new.layers == reading.MOST
    assert len(looked) == 2


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """A copy of the shipped Llama."""
    return shutil.copytree(HERE / "llama", tmp_path / "bad")


@pytest.mark.parametrize(("changes", "said"), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_bad_config_is_named_with_its_field(
    changes: Any, said: str, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """grow: exit 4, one line with the file, nothing written. verify: exit 1 or 4."""
    path = bad / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(
        json.dumps(fields | changes if isinstance(changes, dict) else changes)
    )
    there = sorted(bad.parent.iterdir())
    assert (
        main(["grow", str(bad), str(bad.parent / "new"), "--num-hidden-layers=9"]) == 4
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"growproof: {path}: ")
    assert said in line
    assert ", expected " in line
    assert sorted(bad.parent.iterdir()) == there
    assert main(["verify", str(bad), str(HERE / "llama")]) == 4
    assert main(["verify", str(HERE / "llama"), str(bad)]) == 1
    assert "expected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("generation_config.json", "null", "got None, expected a JSON object"),
        ("generation_config.json", '{"suppress_tokens": 3}', "suppress_tokens"),
        ("config.json", DEEP, "a depth of 32 at most"),
        ("config.json", '{"a": ' + "9" * 5000 + "}", "a number past all sizes"),
        ("config.json", "{" + " " * reading.MOST_BYTES, "more than 16,777,216 bytes"),
        ("config.json", "", "an empty file"),
        ("model.safetensors.index.json", "[]", "got [], expected a JSON object"),
        ("model.safetensors.index.json", "{}", "weight_map: got None"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "/etc/x"}}', "'/etc/x'"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}', "weight_map, 'a'"),
    ],
)
def test_a_bad_file_is_named(
    name: str, text: str, said: str, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its place, what was got and what was expected; exit 4; nothing written."""
    if "index" in name:
        (bad / "model.safetensors").unlink()
    (bad / name).write_text(text)
    assert (
        main(["grow", str(bad), str(bad.parent / "new"), "--num-hidden-layers=9"]) == 4
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"growproof: {bad / name}: ")
    assert said in line
    assert not (bad.parent / "new").exists()


@pytest.mark.parametrize("shard", ["gone", "9" * 300, "\ud800"])
def test_an_index_names_what_is_not_there(
    shard: str, bad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No such file, a name that no disk can hold, one that is no text: one sentence."""
    (bad / "model.safetensors").unlink()
    index = bad / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    arguments = ["grow", str(bad), str(bad.parent / "new"), "--num-hidden-layers=9"]
    assert main(arguments) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"growproof: {index} names ['")
    assert line.endswith("which are not there: download them")
