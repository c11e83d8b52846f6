#!/usr/bin/env python3
"""Lets checkov judge every kind of stack that the template can become, and judges the exceptions that the template makes.

    tests/template/check_checkov.py [--checkov .venv/checkov/bin/checkov] [--template FILE]

A resource of the template may except itself from one of checkov's policies, by `checkov: skip:` in its Metadata, with a reason. Whatever checkov finds has to be
excepted there, and whatever is excepted there has to be found in at least one stack: an exception that nobody needs any more is a problem too. Needs the Python
packages that come with the SAM command line, and checkov (requirements.txt here). Checkov is run without the network.
"""

import argparse
import copy
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections import Counter

import stacks
import template

# What its environment is made from.
REQUIREMENTS = "tests/template/requirements.txt"
# Seconds for all stacks together; they take about ten.
LIMIT = 300
# Letters of the shortest reason that is one.
REASON = 40
# What a stack's own key is for: these are excepted only for stacks without one.
ABOUT_KEYS = {"CKV_AWS_26", "CKV_AWS_27", "CKV_AWS_158"}


def documents(source, sets):
    """What is to be judged: the stack of each set of parameters without the template's exceptions, and with them."""
    bare = copy.deepcopy(source)
    for resource in bare["Resources"].values():
        resource.get("Metadata", {}).pop("checkov", None)
    # Without parameters, so that checkov sees what is really made.
    return {
        (kind, name): {"AWSTemplateFormatVersion": "2010-09-09", **stacks.stack(each, stacks.SETS[name])}
        for kind, each in {"bare": bare, "excepted": source}.items()
        for name in sets
    }


def check(finder, source, judged):
    """What was found and what is excepted are the same; gives how many verdicts there are about the stacks."""
    excepted = exceptions(finder, source)
    found = set()
    for (kind, name), (verdicts, failed) in judged.items():
        for (resource, policy), words in failed.items():
            if kind == "excepted":
                # Whoever runs checkov on a stack's template must see the exceptions.
                finder.expect((resource, policy) not in excepted, f"the exception of {resource} from {policy} does not reach checkov")
                continue
            found.add((resource, policy))
            with_key = ", although the stack has a key" if policy in ABOUT_KEYS and "CustomerKey" in stacks.SETS[name] else ""
            finder.expect((resource, policy) in excepted and not with_key, f"{policy} finds {resource}{with_key}: {words}")
    for resource, policy in sorted(excepted - found):
        finder.expect(False, f"{resource} excepts itself from {policy}, which finds it in no stack")
    return sum(verdicts for (kind, _), (verdicts, _) in judged.items() if kind == "bare")


def exceptions(finder, source):
    """(resource, policy) of every exception in the template; each has a reason, and stands once."""
    found = []
    for name, resource in source["Resources"].items():
        for skip in resource.get("Metadata", {}).get("checkov", {}).get("skip", []):
            found.append((name, skip["id"]))
            reason = skip.get("comment", "")
            finder.expect(len(reason) >= REASON and reason.endswith("."), f"{name} gives no reason for its exception from {skip['id']}: {reason!r}")
    finder.expect(len(found) == len(set(found)), f"an exception stands twice: {found}")
    return set(found)


def judgements(checkov, documents):
    """What checkov says about each document: how many verdicts, and what fails, (resource, policy) → the policy in words."""
    judged = {name: (Counter(), {}) for name in documents}
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for number, (name, text) in enumerate(documents.items()):
            (pathlib.Path(folder) / f"{number}.json").write_text(json.dumps(text, indent=1))
            files[f"/{number}.json"] = name
        command = [checkov, "--directory", folder, "--framework", "cloudformation", "--skip-download", "--compact", "--output", "json"]
        # In a folder, and with a home, in which nobody has configured it.
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "BC_", "CKV_", "PRISMA_"))} | {"HOME": folder}
        run = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)
    try:
        report = json.loads(run.stdout)
        results, errors = report["results"], report["summary"]["parsing_errors"]
    except (ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"checkov gives no report ({error!r}), and ends with {run.returncode}:\n{run.stdout[-1000:]}{run.stderr[-2000:]}") from error
    for kind in ("passed_checks", "failed_checks", "skipped_checks"):
        for verdict in results[kind]:
            counts, failed = judged[files[verdict["file_path"]]]
            counts[kind] += 1
            if kind == "failed_checks":
                failed[verdict["resource"].split(".")[-1], verdict["check_id"]] = verdict["check_name"]
    silent = [name for name, (counts, _) in judged.items() if not counts]
    if errors or silent:
        raise RuntimeError(f"checkov cannot read {errors} of the documents, and says nothing about {silent}")
    return {name: (counts.total(), failed) for name, (counts, failed) in judged.items()}


def main():
    """Judges the template, and shows all problems at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkov", default=str(template.ROOT / ".venv/checkov/bin/checkov"))
    parser.add_argument("--template", type=pathlib.Path, default=template.TEMPLATE)
    arguments = parser.parse_args()
    finder = template.Finder()
    source = template.read(arguments.template.read_text())
    verdicts = check(finder, source, judgements(template.tool(arguments.checkov, REQUIREMENTS), documents(source, stacks.SETS)))
    print(f"checkov: {'PROBLEMS' if finder.problems else 'ok'}, {verdicts} verdicts on {len(stacks.SETS)} stacks, {len(exceptions(finder, source))} exceptions")
    for problem in finder.problems:
        print(f"checkov: {problem}", file=sys.stderr)
    sys.exit(1 if finder.problems else 0)


if __name__ == "__main__":
    main()
