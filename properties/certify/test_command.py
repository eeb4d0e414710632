"""`growproof certify`: its exit codes, and the file that it leaves."""

import json
from pathlib import Path

import jsonschema
import pytest

from . import certificates
from .command import AXES, main


def test_the_command_certifies_growproof(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "certificates.json"
    left_out = ["--without", "heads", "--without", "groups"]
    assert main(["--family", "stablelm", *left_out, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "certified" in out
    assert "Assumed: " in out
    found = json.loads(file.read_text("utf-8"))
    schema = Path(certificates.__file__).with_name("certificate.schema.json")
    validator = jsonschema.Draft202012Validator(json.loads(schema.read_text("utf-8")))
    for certificate in found:
        validator.validate(certificate)
    assert 0 < len(found) < len(AXES["stablelm"])


SHAPED = ["--family", "stablelm", "--shape", "hidden_size=24", "num_attention_heads=6"]
SHAPED += ["num_key_value_heads=3", "--target", "hidden_size=36"]


@pytest.mark.parametrize(
    ("grower", "code"), [("right", 0), ("wrong", 1), ("declines", 4)]
)
def test_exit_codes(
    grower: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "planted_to_certify.py").write_text(
        "import functools, growproof\n"
        "right = growproof.grow\n"
        "wrong = functools.partial(growproof.grow, norm='scaled')\n"
        "def declines(model, target): raise NotImplementedError\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main([f"planted_to_certify:{grower}", *SHAPED]) == code


@pytest.mark.parametrize(
    "argv",
    [
        ["growproof:no_such_thing"],
        ["no_such_module:grow"],
        ["--target", "hidden_size=36"],
        ["--family", "no_such_family"],
        ["--family", "llama", "--target", "width=36"],
        ["--family", "llama", "--target", "hidden_size"],
        ["--family", "llama", "--shape", "hidden_size=13"],
        ["--family", "llama", "--shape", "hidden_size=-8"],
        ["--family", "llama", "--shape", "hidden_act=foo"],
        ["--family", "llama", "--shape", "num_attention_heads=0"],
        ["--family", "llama", "--shape", "pad_token_id=128001"],
        ["--family", "llama", "--without", "llama"],
        ["--without", "no_such_feature"],
        ["--unknown"],
    ],
)
def test_usage_errors_exit_with_four(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 4
