"""The wheel is all that one needs: built, installed, and run from an empty directory."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("wheel")

ROOT = Path(__file__).parents[1]
COMMANDS = ("check", "grow", "fit", "verify", "init", "certify", "power", "report")
LAW = "test_mlp_maps_padded_to_padded"
# what git ignores, where an older build would have taken it along
IGNORED = ("properties/laws/old.pyc", "reference/growproof/.hypothesis/x", "dist/y")
HELP = """
import sys, growproof
from growproof.cli import main
for name in sys.argv[1:]:
    print("==", name, flush=True)
    try:
        code = main([name, "--help"])
    except SystemExit as stopped:
        code = stopped.code
    assert not code, (name, code)
print(growproof.__file__)
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """stdout and stderr of a command that has to exit with 0; it is no xdist worker."""
    ours = ("PYTHONPATH", "PYTEST_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=kept | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def built(project: Path, out: Path) -> Path:
    """The folder of what hatchling makes of a project: its wheel and its sdist."""
    path = os.environ.get("PYTHONPATH", "")  # hatchling may be on it
    run(sys.executable, "-m", "hatchling", "build", "-d", out, cwd=project,
        PYTHONPATH=path)  # fmt: skip
    return out


def contents(wheel: Path) -> dict[str, bytes]:
    """name → bytes of what a wheel holds."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of this checkout."""
    pytest.importorskip(
        "hatchling", reason="pip install hatchling (growproof[test]): it builds both"
    )
    return built(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The wheel of this checkout."""
    (found,) = dist.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin of an environment with the wheel; its dependencies are the running ones'."""
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    run(sys.executable, "-m", "pip", f"--python={python}", "install", "-q",
        "--no-index", "--no-deps", "--no-compile", wheel, cwd=home)  # fmt: skip
    (site,) = home.glob("lib/python*/site-packages")
    # a line of a .pth adds a folder, and none of its own .pth files: no checkout
    packages = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(packages))
    return python.parent


def test_the_wheel_holds_what_commands_need_and_no_more(wheel: Path) -> None:
    """One package, typed; laws, but no tests of growproof itself; small."""
    names = contents(wheel).keys()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"growproof"}
    assert {"growproof/py.typed", "growproof/pytest.ini"} <= names
    tests = {n for n in names if "/test_" in n and "/laws/" not in n}
    assert {name.rpartition("/")[2] for name in tests} == {
        "test_certified.py",
        "test_corpus.py",
    }
    assert not [n for n in names if n.endswith((".v", ".vo", ".pyc", ".safetensors"))]
    assert wheel.stat().st_size < 500_000


def test_the_wheel_holds_no_file_that_git_ignores(wheel: Path) -> None:
    """Every file of it is one of the repository's, byte for byte."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing is ignored here")
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    checked = 0
    for name, data in contents(wheel).items():
        if ".dist-info/" in name:
            continue
        below = name.removeprefix("growproof/")
        home = "" if below.startswith("properties/") else "reference/growproof/"
        assert home + below in listed, name
        assert (ROOT / home / below).read_bytes() == data, name
        checked += 1
    assert checked > 80


def test_the_sdist_builds_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    """Also where there are files beside its own that git would ignore."""
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (project,) = tmp_path.iterdir()
    for name in IGNORED:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("left over")
    (again,) = built(project, tmp_path / "again").glob("*.whl")
    (first,) = dist.glob("*.whl")
    assert contents(again) == contents(first)


def test_every_command_has_its_help(installed: Path, tmp_path: Path) -> None:
    """From an empty directory, and out of the environment: no checkout in sight."""
    said = run(installed / "python", "-c", HELP, *COMMANDS, cwd=tmp_path)
    assert [line[3:] for line in said.splitlines() if line.startswith("== ")] == [
        *COMMANDS
    ]
    assert said.count("usage: ") == len(COMMANDS)
    assert Path(said.splitlines()[-1]).is_relative_to(installed.parent)
    assert not list(tmp_path.iterdir())


def test_a_check_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """`growproof check`, as installed, of growproof's own grower."""
    said = run(installed / "growproof", "check", "-k", LAW, "-p", "no:cacheprovider",
               cwd=tmp_path)  # fmt: skip
    assert said.splitlines()[-1].startswith("growproof:grow conforms: zero_padding,")


def test_the_laws_are_a_package_for_pytest(installed: Path, tmp_path: Path) -> None:
    """`pytest --pyargs growproof.properties --grower …`, where nothing else is."""
    said = run(installed / "python", "-m", "pytest", "--pyargs", "growproof.properties",
               "--grower", "growproof:grow", "-k", LAW, "-p", "no:cacheprovider",
               cwd=tmp_path)  # fmt: skip
    assert "grower: growproof:grow" in said
    assert said.splitlines()[-1].startswith("growproof:grow conforms: zero_padding,")
