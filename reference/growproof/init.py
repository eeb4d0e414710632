"""`growproof init`: a grower's test, its expected failures and its CI, in a project.

All of CI is one script, growproof.sh: what GitHub, GitLab and a shell run is the same.
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

SCRIPT = """\
#!/bin/sh
# Judges {grower} by the laws of growproof. 0: it conforms; 1: it violates one, or its
# errors grew against growproof-baseline.json; 4: no verdict, and the reason is said.
# Arguments go to `growproof check`.
cd "$(dirname "$0")" || exit 4
baseline=
[ -f growproof-baseline.json ] && baseline=--errors-compare=growproof-baseline.json
rm -f growproof-errors.json growproof-score.json growproof-report.*
code=0
growproof check {words} --isolate --xfails growproof-xfails.txt $baseline \\
  --errors-save growproof-errors.json --score growproof-score.json --sign \\
  --junitxml growproof-junit.xml "$@" || code=$?
if [ -f growproof-score.json ]; then
  growproof report growproof-score.json --html growproof-report.html \\
    --markdown growproof-report.md --badge growproof-badge.json \\
    ${{GITHUB_ACTIONS:+--annotations}} > growproof-report.txt || true
  grep '^::' growproof-report.txt
  [ -z "${{GITHUB_STEP_SUMMARY:-}}" ] || cat growproof-report.md >> "$GITHUB_STEP_SUMMARY"
fi
exit $code
"""
TEST = '''\
"""{grower} conforms to the laws of growproof."""

import subprocess
from pathlib import Path
from typing import Any


def test_the_grower_conforms() -> None:
    """The script that CI runs: exit 0."""
    script = Path(__file__).resolve().parents[1] / "growproof.sh"
    done = subprocess.run(["sh", str(script)], check=False)
    assert done.returncode == 0
'''
XFAILS = """\
# Failures that are expected, a line each; one that passes, or is worse, fails the run.
# `growproof check … --write-xfails FILE` writes those of a run.
# law | reason | link | expires | ceiling
"""
GITHUB = """\
name: growproof
on: [push, pull_request]
jobs:
  growproof:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {python-version: "3.12"}
      - run: pip install growproof -e .
      - run: sh growproof.sh
      - uses: actions/upload-artifact@v4
        if: always()
        with: {name: growproof, path: "growproof-*"}
"""
GITLAB = """\
growproof:
  image: python:3.12
  script:
    - pip install growproof -e .
    - sh growproof.sh
  artifacts:
    when: always
    paths: ["growproof-*"]
    reports: {junit: growproof-junit.xml}
"""
CI = {
    "github": {".github/workflows/growproof.yml": GITHUB},
    "gitlab": {".gitlab/growproof.yml": GITLAB},
    "shell": dict[str, str](),
}


def files(grower: str, words: list[str], ci: str) -> dict[str, str]:
    """path → text of what is written. words: the options of `growproof check`."""
    known = {"grower": grower, "words": shlex.join([grower, *words])}
    return {
        "growproof.sh": SCRIPT.format(**known),
        "growproof-xfails.txt": XFAILS,
        "tests/test_growproof.py": TEST.format(**known),
        **CI[ci],
    }


def add_init(commands: Any) -> None:
    """The options of `growproof init`."""
    p = commands.add_parser(
        "init",
        help="write a grower's test, xfails and CI into a project",
        description="Write growproof.sh, growproof-xfails.txt, tests/test_growproof.py "
        "and a CI job that runs the script. Nothing is overwritten.",
    )
    p.add_argument("grower", help="MODULE:CALLABLE, as for `growproof check`")
    p.add_argument("folder", type=Path, nargs="?", default=Path(), help="the project")
    p.add_argument("--ci", choices=tuple(CI), default="github", help="default: github")
    for name in ("family", "without", "with"):
        p.add_argument(f"--{name}", metavar="NAME,…", help="as for `growproof check`")
    p.add_argument("-m", metavar="PROMISES", help="as for `growproof check`")
    p.set_defaults(run=init)


def init(options: argparse.Namespace) -> int:
    """`growproof init`: 0. Raises ValueError where a file of that name is there."""
    asked = {f"--{n}": getattr(options, n) for n in ("family", "without", "with")}
    asked["-m"] = options.m
    words = [word for name, value in asked.items() if value for word in (name, value)]
    if ":" not in options.grower:
        raise ValueError(f"a grower is MODULE:CALLABLE, got {options.grower!r}")
    if not options.folder.is_dir():
        raise ValueError(f"there is no directory {options.folder}")
    found = files(options.grower, words, options.ci)
    if there := [name for name in found if (options.folder / name).exists()]:
        raise ValueError(f"{', '.join(there)} exists: remove it, or write it by hand")
    for name, text in found.items():
        path = options.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        print(f"wrote {path}")
    if options.ci == "gitlab":
        print("include it in .gitlab-ci.yml: include: {local: .gitlab/growproof.yml}")
    print("now see for yourself:")
    print(f"sh {options.folder / 'growproof.sh'}")
    return 0
