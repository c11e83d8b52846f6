#!/usr/bin/env python3
"""Plants the bugs of mutants.toml, one after the other, in a copy of the repository, and lets the simulation look
for each: it must fail, by the invariant that the bug names, within 2,000 seeds.

    python3 tests/simulation/plant.py [--only WORDS] [--seeds N] [--check]

The copy and what is built of it stay in target/plant, so that a second time is faster: never in the repository's own
target directory, where Cargo would take the copy's crate for the real one. `--only` takes those whose name holds the
words; `--check` builds nothing and only looks whether each place stands exactly once in its file. Prints a line for
each; exits with 1 if one is not found."""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
NEEDED = ["Cargo.toml", "Cargo.lock", "clippy.toml", "src", "sim", "tests", "examples", "events", "template.yaml", "README.md", "document"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with open(ROOT / "tests/simulation/mutants.toml", "rb") as file:
        mutants = [m for m in tomllib.load(file)["mutant"] if arguments.only in m["name"]]
    if arguments.check:
        return check(mutants)
    copy = ROOT / "target/plant/copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in NEEDED:
        source = ROOT / name
        if source.is_dir():
            # With new times: Cargo would else take what was built with the last planted bug for fresh.
            ignored = shutil.ignore_patterns("__pycache__", "target")
            shutil.copytree(source, copy / name, ignore=ignored, copy_function=shutil.copy)
        elif source.exists():
            shutil.copy(source, copy / name)
    missed = [mutant["name"] for mutant in mutants if not found(mutant, copy, arguments.seeds)]
    if missed:
        print(f"not found: {', '.join(missed)}")
    return 1 if missed or not mutants else 0


def check(mutants: list[dict]) -> int:
    """Whether each bug can still be planted: what moved in the sources shows at once, and not after an hour."""
    lost = [mutant for mutant in mutants if not stands_once(mutant, ROOT)]
    print(f"{len(mutants) - len(lost)} of {len(mutants)} places stand once in their files")
    return 1 if lost or not mutants else 0


def stands_once(mutant: dict, root: pathlib.Path) -> bool:
    count = (root / mutant["file"]).read_text().count(mutant["find"])
    if count != 1:
        print(f"{mutant['name']}: its place stands {count} times in {mutant['file']}")
    return count == 1


def found(mutant: dict, copy: pathlib.Path, seeds: int) -> bool:
    if not stands_once(mutant, copy):
        return False
    file = copy / mutant["file"]
    original = file.read_text()
    file.write_text(original.replace(mutant["find"], mutant["replace"]))
    try:
        # Most are found at once.
        return search(mutant, copy, min(200, seeds), last=False) or search(mutant, copy, seeds, last=True)
    finally:
        file.write_text(original)


def search(mutant: dict, copy: pathlib.Path, seeds: int, last: bool) -> bool:
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": str(copy.parent / "target"),
        "CARGO_PROFILE_SIMULATION_INCREMENTAL": "true",
        "SIMULATION_SEEDS": str(seeds),
    }
    command = ["cargo", "test", "--profile", "simulation", "--test", "simulation", "--", "--nocapture", "every_invariant"]
    run = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=1500)
    broken = re.findall(r"^broken in (\d+) seeds, first in (\d+): (\d) (.*)$", run.stdout, re.M)
    if not broken and "seeds 0 to" not in run.stdout:
        print(f"{mutant['name']}: does not run\n{run.stdout[-2000:]}{run.stderr[-3000:]}")
        return False
    hit = run.returncode != 0 and any(int(number) == mutant["invariant"] for _, _, number, _ in broken)
    if hit or last:
        names = [f"{number} (first in seed {first}, {count} of {seeds})" for count, first, number, _ in broken]
        told = f"{mutant['invariant']} {mutant['name']}: broken {', '.join(names) or 'nothing'}"
        print(f"{'found ' if hit else 'MISSED'} {told}", flush=True)
    return hit


if __name__ == "__main__":
    sys.exit(main())
