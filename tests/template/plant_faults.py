#!/usr/bin/env python3
"""Plants the faults of faults.toml, one after the other, in a copy of the template or of what it has to agree with, and lets the check that each names look at
it: that check must find it, and say so in the words that the fault names. What the function tells of itself (facts.py) is a file of that copy, facts.json.

    tests/template/plant_faults.py [--only WORDS] [--emulator PYTHON] [--checkov FILE] [--transcripts DIR]

Without a fault, each of those checks must find nothing. The catchers are cfn-lint, checkov, an emulator's EventBridge and CloudFormation, an IAM simulator over
the calls of the stories, and our own checks of this folder. Prints a line for each fault; ends with 1 if one is not found. Needs what those checks need, and the
stories' transcripts (SIM_TRANSCRIPT_DIR=DIR cargo test --test stories).
"""

import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib

import agreement
import check_checkov
import check_document
import check_events
import check_examples
import deployer
import emulator
import facts
import shipped
import stacks
import template
import upgrade
import wiring

import build
import release

# What the checks read.
COPIED = ["template.yaml", "README.md", "LICENSE", "Cargo.toml", ".ci", "docs", "document", "events", "examples", "tests/template", "tests/policy"]
# The two stacks with most in them, and the one that everybody gets first: a run about all of them would take minutes.
CHECKOV_SETS = ["defaults", "everything on pipelines", "everything on deployments"]
# Seconds for one run of the IAM simulator; it takes three.
POLICY_LIMIT = 120
# Letters of what a check said that fit in a line.
SHOWN = 150


class Catchers:
    """Every check by its name: what it finds in a copy of the repository, as a list of sentences."""

    def __init__(self, aws, checkov, transcripts):
        self.aws, self.checkov, self.transcripts = aws, checkov, transcripts
        self.judged = None
        self.by_name = {
            "agreement": lambda root, source: self.found(agreement.check, root, source),
            "cfn-lint": lambda root, source: shipped.lint(release.restarter((root / "template.yaml").read_text())),
            "checkov": lambda root, source: self.found(check_checkov.check, source, self.judged.result()[(root / "template.yaml").read_text()]),
            "deployer": lambda root, source: self.found(deployer.check, root, source),
            "document": lambda root, source: check_document.all_problems((root / "template.yaml").read_text(), build.scripts()),
            "event patterns": lambda root, source: self.found(check_events.check_patterns, self.aws, source, root),
            "examples": lambda root, source: self.found(check_examples.check, self.aws, root),
            "parameters": lambda root, source: self.parameters((root / "template.yaml").read_text()),
            "policy": lambda root, source: self.policy(root),
            "shipped": lambda root, source: self.found(shipped.check, (root / "template.yaml").read_text()),
            "upgrade": lambda root, source: self.found(upgrade.check, source),
            "wiring": lambda root, source: self.found(wiring.check, source),
        }

    def found(self, check, *about):
        """What a check notes."""
        finder = template.Finder()
        check(finder, *about)
        return finder.problems

    def parameters(self, text):
        """Which sets of parameters restarter.yaml takes."""
        return self.found(check_events.check_parameters, self.aws, template.read(release.restarter(text)), [*stacks.SETS.values(), *check_events.ALLOWED])

    def judge(self, texts):
        """What checkov says of each of these templates: in one run, since nearly all of its time is its start."""
        documents = {}
        for text in texts:
            source = template.read(text)
            documents |= {(text, key): document for key, document in check_checkov.documents(source, CHECKOV_SETS).items()}
        judged = {text: {} for text in texts}
        for (text, key), judgement in check_checkov.judgements(self.checkov, documents).items():
            judged[text][key] = judgement
        return judged

    def policy(self, root):
        """The IAM simulator's check, in the copy."""
        command = [sys.executable, str(root / "tests/policy/check_policy.py"), str(self.transcripts)]
        run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=POLICY_LIMIT)
        told = [line.removeprefix("policy: ") for line in run.stderr.splitlines()]
        return told if run.returncode else []

    def ask(self, name, root):
        """What a check finds."""
        return self.by_name[name](root, template.read((root / "template.yaml").read_text()))


def repository(folder):
    """A copy of what the checks read; from here on, also of what the function tells."""
    # In the order of the alphabet, so that a fault finds its place whatever order the function has.
    (folder / "facts.json").write_text(json.dumps(facts.read(), sort_keys=True))
    os.environ["FACTS"] = str(folder / "facts.json")
    for name in COPIED:
        source, copy = template.ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    (folder / "tests/policy/node_modules").symlink_to(template.ROOT / "tests/policy/node_modules")
    return folder


def planted(root, fault):
    """The file of a fault, and its text with the fault in it."""
    file = root / fault.get("file", "template.yaml")
    return file, file.read_text().replace(fault["find"], fault["replace"])


def misplaced(root, fault):
    """What is wrong with the place of a fault, as what is told about it; or nothing."""
    file = fault.get("file", "template.yaml")
    count = (root / file).read_text().count(fault["find"])
    return [] if count == 1 else [f"its place stands {count} times in {file}"]


@contextlib.contextmanager
def in_place(root, fault):
    """The copy with the fault in it."""
    file, text = planted(root, fault)
    original = file.read_text()
    file.write_text(text)
    try:
        yield
    finally:
        file.write_text(original)


def caught(catchers, root, fault):
    """Whether the fault is found as what it is; prints the line of the table."""
    told = misplaced(root, fault)
    with in_place(root, fault):
        try:
            told = told or catchers.ask(fault["catcher"], root)
        except Exception as error:  # noqa: BLE001: a check that breaks down has found nothing.
            told = [f"it breaks down: {error!r}"]
    hit = next((sentence for sentence in told if re.search(fault["says"], sentence)), None)
    shown = hit or f"{len(told)} findings, none with {fault['says']!r}: {told[:1]}"
    print(f"{'found ' if hit else 'MISSED'} | {fault['name']:<60} | {fault['catcher']:<14} | {' '.join(shown.split())[:SHOWN]}", flush=True)
    return hit is not None


def main():
    """Proves that the checks find nothing without a fault, then plants each."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="only faults whose name or catcher holds the words")
    parser.add_argument("--emulator", default=str(template.ROOT / ".venv/emulator/bin/python"), metavar="PYTHON")
    parser.add_argument("--checkov", default=str(template.ROOT / ".venv/checkov/bin/checkov"), metavar="FILE")
    parser.add_argument("--transcripts", default=template.ROOT / "target/transcripts", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    every = tomllib.loads((pathlib.Path(__file__).parent / "faults.toml").read_text())["fault"]
    faults = [fault for fault in every if arguments.only in fault["name"] or arguments.only in fault["catcher"]]
    python = template.tool(arguments.emulator, emulator.REQUIREMENTS)
    checkov = template.tool(arguments.checkov, check_checkov.REQUIREMENTS)
    with tempfile.TemporaryDirectory() as folder, emulator.running(python) as aws, concurrent.futures.ThreadPoolExecutor(1) as beside:
        root = repository(pathlib.Path(folder).resolve())
        catchers = Catchers(aws, checkov, arguments.transcripts.resolve())
        # checkov last, so that it judges while the others look.
        faults.sort(key=lambda fault: fault["catcher"] == "checkov")
        named = list(dict.fromkeys(fault["catcher"] for fault in faults))
        if "checkov" in named:
            texts = [(root / "template.yaml").read_text(), *(planted(root, fault)[1] for fault in faults if fault["catcher"] == "checkov")]
            catchers.judged = beside.submit(catchers.judge, texts)
        missed = []
        for name in named:
            found = catchers.ask(name, root)
            if found:
                sys.exit(f"{name} finds something without a fault: {found}")
            missed += [fault["name"] for fault in faults if fault["catcher"] == name and not caught(catchers, root, fault)]
    print(f"faults: {len(faults) - len(missed)} of {len(faults)} found, by {len(named)} checks that find nothing without a fault, {time.monotonic() - began:.0f} s")
    sys.exit(1 if missed or not faults else 0)


if __name__ == "__main__":
    main()
