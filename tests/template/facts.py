"""What the function is made of, as its own test tells it (tests/facts.rs): settings, parameters of the document, results, outcomes, and how many seconds before its
timeout it stops. The checks hold this against the template and the documents; how the source says it is the source's business.

The test is run once for each check. With FACTS=FILE they are read from that file instead."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND = ["cargo", "test", "--locked", "--quiet", "--test", "facts", "--", "--nocapture"]
# Seconds for the test; nearly all of it is the build, if nothing is built yet.
LIMIT = 900
# What must be there, each a list that is not empty; of objects, with these members.
LISTS = {
    "settings": {"variable", "default", "accepted"},
    "parameters": {"name", "simDefault"},
    "simulatedParameters": None,
    "results": {"word", "code", "outcome", "severity"},
    "outcomes": {"word", "needsAttention"},
}


def read():
    """The facts, as the test's one line of JSON has them. Without them no check can go on, so the process ends."""
    file = os.environ.get("FACTS")
    if file:
        path = pathlib.Path(file)
        return parsed(path.read_text() if path.is_file() else "", f"the file {file}")
    return parsed(told_by_the_test(), f"the line of `{' '.join(COMMAND)}`")


@functools.cache
def told_by_the_test():
    """The line that the test prints among whatever else Cargo and it print."""
    command = " ".join(COMMAND)
    try:
        run = subprocess.run(COMMAND, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT)
    except FileNotFoundError:
        sys.exit(f"facts: there is no {COMMAND[0]}, which `{command}` needs")
    except subprocess.TimeoutExpired:
        sys.exit(f"facts: `{command}` has not ended after {LIMIT} s")
    lines = re.findall(r'\{"facts":1,.*', run.stdout)
    if run.returncode or len(lines) != 1:
        sys.exit(f"facts: `{command}` ended with {run.returncode}, and printed {len(lines)} lines of facts, not one:\n{run.stdout[-2000:]}{run.stderr[-3000:]}")
    return lines[0]


def parsed(text, whence):
    """The text as data in which everything is there that the checks ask for."""
    try:
        facts = json.loads(text)
        wrong = [name for name, members in LISTS.items() if not facts[name] or members and not all(members <= set(each) for each in facts[name])]
        if wrong or not isinstance(facts["reserveSeconds"], int):
            raise ValueError(f"not as they should be are: {wrong or 'reserveSeconds'}")
    except (ValueError, KeyError, TypeError) as error:
        sys.exit(f"facts: {whence} cannot be used: {error!r}")
    return facts
