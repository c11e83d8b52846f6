#!/usr/bin/env python3
"""The script of the document, under a real systemd, against stand-in agents that behave as the real ones were measured to do.

    tests/host/run.py                       # all cases and controls, and the checks of the script's text
    tests/host/run.py --case idle --case race
    tests/host/run.py --script FILE         # another script than document/restart-agent.sh
    tests/host/run.py --write-lines         # also renews lines.jsonl, which the function's own parser is tested with

Needs root, systemd-nspawn, busybox, shellcheck and perl, and nothing but Python's standard library. Exit status 1 when anything failed.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import cases
import field
import static
from stage import HERE, SCRIPT, Failure, Stage, Stopped

# Containers at a time. Most of a case is waiting.
AT_A_TIME = 14
# Seconds for the whole run; whatever is not done by then has failed.
RUN_LIMIT = 540
# Lines that lines.jsonl holds of each result.
LINES_OF_A_RESULT = 4

PACKAGES = {
    "systemd-nspawn": "systemd-container",
    "busybox": "busybox",
    "shellcheck": "shellcheck",
    "perl": "perl-base",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "flock": "util-linux",
    "bash": "bash",
    "dash": "dash",
}
INSIDE = "AGENT_HOST_TESTS_INSIDE"


def check_machine():
    """What is missing is said, and is a failure: a test that skips proves nothing."""
    missing = [f"{tool} (package {package})" for tool, package in PACKAGES.items() if not shutil.which(tool)]
    if os.geteuid() != 0:
        missing.insert(0, "root")
    if not pathlib.Path("/run/systemd").exists() and not pathlib.Path("/lib/systemd/systemd").exists():
        missing.append("systemd (package systemd-sysv)")
    if missing:
        sys.exit("the host tests cannot run; missing: " + ", ".join(missing))


def enter_namespaces():
    """Starts this program again in mount and process namespaces of its own: the kernel ends and unmounts everything in them when it ends. Gives the folder to work in."""
    if os.environ.get(INSIDE):
        return pathlib.Path(os.environ[INSIDE])
    folder = pathlib.Path(tempfile.mkdtemp(prefix="agent-host-tests-"))
    command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
    child = subprocess.Popen(command, env={**os.environ, INSIDE: str(folder)})

    def pass_on(number, _):
        # To the program itself: `unshare` would not pass it on. It ends everything in order, and then this ends too.
        for inner in pathlib.Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split():
            os.kill(int(inner), number)

    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    code = child.wait()
    # Only now has the kernel ended everything in there; what no namespace holds is removed from here.
    Stage(folder, folder.name).remove_groups()
    folder.rmdir()
    sys.exit(code)


def run_one(stage, case, began):
    """One case: its seconds and, when it failed, why."""
    if stage.stopping.is_set():
        return 0.0, "not run: the whole run was ended, or its time was over"
    start = time.monotonic()
    problem = None
    try:
        case.body(stage)
    except Stopped:
        problem = "ended before it was done"
    except Failure as failure:
        problem = str(failure) + place(failure)
    except Exception:  # noqa: BLE001 (whatever goes wrong in a case is that case's failure)
        problem = traceback.format_exc()
    seconds = time.monotonic() - start
    print(f"{'ok  ' if problem is None else 'FAIL'} {seconds:6.1f} s  {case.name}  (at {time.monotonic() - began:.0f} s)", flush=True)
    return seconds, problem


def place(failure):
    """Where in the cases it failed."""
    frames = [frame for frame in traceback.extract_tb(failure.__traceback__) if frame.filename in (cases.__file__, field.__file__)]
    return f" ({pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def print_table(rows):
    width = max(len(case.name) for case, _, _ in rows)
    expected = max(len(case.expectation) for case, _, _ in rows)
    print(f"\n{'#':>4}  {'case':{width}}  {'must be':{expected}}  verdict  seconds")
    for case, seconds, problem in rows:
        print(f"{case.number:>4}  {case.name:{width}}  {case.expectation:{expected}}  {'ok' if problem is None else 'FAILED':7}  {seconds:7.1f}")


def chosen(names):
    everything = cases.all_cases()
    if not names:
        return everything
    found = [case for case in everything if any(name in case.name or name == case.number.lstrip("-") for name in names)]
    if not found:
        sys.exit("no case has such a name; there are: " + ", ".join(case.name for case in everything))
    return found


def write_lines(stage):
    """What the script really printed, a few lines of each result, for the test of the function's parser."""
    kept = {}
    for line in sorted(stage.lines, key=lambda line: line["case"]):
        kept.setdefault(json.loads(line["line"])["result"], []).append(line)
    lines = [line for result in sorted(kept) for line in kept[result][:LINES_OF_A_RESULT]]
    (HERE / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"wrote {len(lines)} lines to lines.jsonl")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", default=[], help="only cases whose name holds this text, or with this number")
    parser.add_argument("--at-a-time", type=int, default=AT_A_TIME, help="containers at a time")
    parser.add_argument("--script", type=pathlib.Path, default=SCRIPT, metavar="FILE", help="the script that is tried")
    parser.add_argument("--write-lines", action="store_true", help="renew lines.jsonl")
    parser.add_argument("--list", action="store_true", help="only list the cases")
    arguments = parser.parse_args()
    if arguments.write_lines and (arguments.case or arguments.script != SCRIPT):
        parser.error("--write-lines needs all cases, on the document's script")
    if not arguments.script.is_file():
        parser.error(f"there is no {arguments.script}")
    selected = chosen(arguments.case)
    if arguments.list:
        for case in selected:
            print(f"{case.number:>4}  {case.name}: {case.expectation}")
        return
    check_machine()
    folder = enter_namespaces()

    began = time.monotonic()
    stage = Stage(folder, folder.name, arguments.script.resolve())
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", folder], check=True, timeout=30)
    signal.signal(signal.SIGINT, lambda *_: stage.stop())
    signal.signal(signal.SIGTERM, lambda *_: stage.stop())
    timer = threading.Timer(RUN_LIMIT, stage.stop)
    timer.daemon = True
    timer.start()
    try:
        problems = {"static": static.problems(stage.script)} if not arguments.case else {"static": []}
        # The longest first, so that the run does not end with one of them alone.
        order = sorted(selected, key=lambda case: -case.seconds)
        with concurrent.futures.ThreadPoolExecutor(arguments.at_a_time) as pool:
            futures = {case: pool.submit(run_one, stage, case, began) for case in order}
            rows = [(case, *futures[case].result()) for case in selected]
    finally:
        timer.cancel()
        subprocess.run(["umount", "-l", folder], check=False, timeout=30)
    print_table(rows)
    failed = [(case, problem) for case, _, problem in rows if problem is not None]
    for case, problem in failed:
        print(f"\nFAILED {case.name} (must be: {case.expectation})\n  {problem}")
    for problem in problems["static"]:
        print(f"\nFAILED static: {problem}")
    print(f"\n{len(rows) - len(failed)} of {len(rows)} cases passed, {len(problems['static'])} problems in the script's text, {time.monotonic() - began:.0f} s")
    if failed or problems["static"]:
        sys.exit(1)
    if arguments.write_lines:
        write_lines(stage)


if __name__ == "__main__":
    main()
