"""Long runs over the known-good growers: no flake, no false alarm, and the worst cases.

    python -m properties.power.runs FOLDER [--seeds 0 1 …] [--jobs 2]

Seed k judges a grower of its own, `growproof:grow` first, as a user would: `growproof
check GROWER --hypothesis-profile thorough --hypothesis-seed k`. FOLDER, which is to lie
in the checkout so that the commit is known, gets a ledger and a log of each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from ..gate.domain import FEATURES
from ..gate.loading import DEFAULT
from ..growers import known_good
from ..growers.known_good import GROWERS, REFERENCE, Good
from ..laws.registry import PROMISES


def arguments(good: Good) -> list[str]:
    """What `growproof check` is told of this grower."""
    spec = DEFAULT if good is REFERENCE else f"{known_good.__name__}:{good.name}"
    broken = set(PROMISES) & set(FEATURES) - set(good.promises)
    return [
        spec,
        *(f"--without={feature}" for feature in sorted(broken)),
        *(f"--with={feature}" for feature in good.with_features),
    ]


def run(seed: int, folder: Path) -> tuple[str, int]:
    """(grower's name, exit code) of one run; its ledger and log stay in the folder."""
    good = (REFERENCE, *GROWERS)[seed % (1 + len(GROWERS))]
    here = folder / f"{seed}-{good.name}"
    here.mkdir()
    command = [
        sys.executable, "-m", "growproof.cli", "check", *arguments(good),
        "--hypothesis-profile=thorough", f"--hypothesis-seed={seed}",
        f"--errors-save={here / 'errors.json'}", "--durations=0",
    ]  # fmt: skip
    with (here / "log.txt").open("w") as log:
        done = subprocess.run(command, cwd=here, stdout=log, stderr=log, check=False)
    return here.name, done.returncode


def main() -> int:
    """Run all seeds; exit 1 if a known-good grower was rejected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(10))
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    folder.mkdir(exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(run, seed, folder) for seed in options.seeds]
        codes = []
        for job in tqdm(as_completed(jobs), total=len(jobs), unit="run", disable=None):
            name, code = job.result()
            print(name, "passed" if not code else f"exit {code}", flush=True)
            codes.append(code)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
