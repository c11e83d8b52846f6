#!/usr/bin/env python3
"""Plants the bugs of mutants.toml, one after the other, in a copy of the repository, and lets the simulation look
for each: it must fail, by the invariant that the bug names, within 2,000 seeds.

    python3 tests/simulation/plant.py [--only WORDS] [--seeds N]

The copy and what is built of it stay in target/plant, so that a second time is faster: never in the repository's own
target directory, where Cargo would take the copy's crate for the real one. `--only` takes those whose name holds the
words. Prints a line for each; exits with 1 if one is not found, or cannot be planted: its text has to stand exactly
once in its file."""

import argparse
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What no build needs; everything else may be read by one.
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".aws-sam", "target", "node_modules", "__pycache__")
COMMAND = ["cargo", "test", "--locked", "--profile", "simulation", "--test", "simulation", "--", "--nocapture", "every_invariant"]
# Seconds for the build and the seeds of one bug; the first build takes longest.
LIMIT = 1500


class NotFound(Exception):
    """Why a bug was not found."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--seeds", type=int, default=2000)
    arguments = parser.parse_args()
    # As any other end: with what was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with open(ROOT / "tests/simulation/mutants.toml", "rb") as file:
        mutants = [m for m in tomllib.load(file)["mutant"] if arguments.only in m["name"]]
    copy = ROOT / "target/plant/copy"
    shutil.rmtree(copy, ignore_errors=True)
    # With new times: Cargo would else take what was built with the last planted bug for fresh.
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT, copy_function=shutil.copy)
    missed = [mutant["name"] for mutant in mutants if not found(mutant, copy, arguments.seeds)]
    print(f"{len(mutants) - len(missed)} of {len(mutants)} bugs found")
    if missed:
        print(f"not found: {', '.join(missed)}")
    return 1 if missed or not mutants else 0


def found(mutant: dict, copy: pathlib.Path, seeds: int) -> bool:
    try:
        verdict, told = "found ", planted(mutant, copy, seeds)
    except NotFound as reason:
        verdict, told = "MISSED", str(reason)
    print(f"{verdict} {mutant['invariant']} {mutant['name']}: {told}", flush=True)
    return verdict == "found "


def planted(mutant: dict, copy: pathlib.Path, seeds: int) -> str:
    """What the simulation says of the copy with the bug in it."""
    file = copy / mutant["file"]
    original = file.read_text() if file.is_file() else ""
    count = original.count(mutant["find"])
    if count != 1:
        raise NotFound(f"its place stands {count} times in {mutant['file']}")
    file.write_text(original.replace(mutant["find"], mutant["replace"]))
    try:
        # Most are found at once.
        for number in (min(200, seeds), seeds):
            hit, told = search(mutant["invariant"], copy, number)
            if hit:
                return told
        raise NotFound(told)
    finally:
        file.write_text(original)


def search(invariant: int, copy: pathlib.Path, seeds: int) -> tuple[bool, str]:
    """Whether so many seeds break the invariant, and what they break."""
    code, output, errors = run(copy, seeds)
    broken = re.findall(r"^broken in (\d+) seeds, first in (\d+): (\d+) (.*)$", output, re.M)
    if not broken and "seeds 0 to" not in output:
        raise NotFound(f"does not run\n{output[-2000:]}{errors[-3000:]}")
    names = [f"{number} (first in seed {first}, {count} of {seeds})" for count, first, number, _ in broken]
    hit = code != 0 and any(int(number) == invariant for _, _, number, _ in broken)
    return hit, f"broken {', '.join(names) or 'nothing'}"


def run(copy: pathlib.Path, seeds: int) -> tuple[int, str, str]:
    """The simulation in the copy: its exit code, and what it prints."""
    environment = {
        **os.environ,
        "CARGO_TARGET_DIR": str(copy.parent / "target"),
        "CARGO_PROFILE_SIMULATION_INCREMENTAL": "true",
        "SIMULATION_SEEDS": str(seeds),
    }
    process = subprocess.Popen(
        COMMAND,
        cwd=copy,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=LIMIT)
    except BaseException as failure:
        # With Cargo's children: a planted bug may never come to an end.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(failure, subprocess.TimeoutExpired):
            raise NotFound(f"has not ended after {LIMIT} s") from failure
        raise
    return process.returncode, output, errors


if __name__ == "__main__":
    sys.exit(main())
