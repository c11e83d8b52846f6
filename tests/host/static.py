"""Checks of the script's text: what no run of it on this machine could show."""

import re
import subprocess

# What systemd 219 (Amazon Linux 2, RHEL 7) knows of what the script may use. Anything else is refused until somebody has looked when it came.
OPTIONS = {"-p", "-q", "-u", "-n", "-o", "--no-legend", "--no-pager"}
VERBS = {"show", "list-jobs", "daemon-reload", "reset-failed", "restart", "is-active"}
SETTINGS = {"KillMode", "KillSignal", "TimeoutStopSec", "PIDFile"}
RUN_OPTIONS = {"--unit", "--description"}

FORBIDDEN = {
    r"kill +(-s +)?-?(9|KILL|SIGKILL)\b": "nothing is killed hard",
    r"--force": "nothing is forced",
    r"\bexit +194\b|\bfinish +194\b": "Systems Manager would reboot the host",
    r"systemctl[^\n]*--value": "systemd 219 does not know it",
    r"\bdate\b|\$EPOCH|\$\{?SECONDS": "the wall clock may be wrong, and not every shell counts seconds",
    r"[^\x00-\x7f]": "Systems Manager runs it in an unknown locale",
}


def code_lines(script):
    """The script without its comments."""
    return [(number, line) for number, line in enumerate(script.read_text().splitlines(), 1) if not line.lstrip().startswith("#")]


def problems(script):
    found = []
    shellcheck = subprocess.run(["shellcheck", "-s", "sh", script], capture_output=True, text=True, timeout=120, check=False)
    if shellcheck.returncode != 0:
        found.append(f"shellcheck: {shellcheck.stdout}{shellcheck.stderr}")
    for number, line in enumerate(script.read_text().splitlines(), 1):
        if "shellcheck disable" in line and not re.search(r"disable=SC\d+(,SC\d+)* # \w", line):
            found.append(f"line {number}: a check is disabled without a reason")
        if "{{" in line:
            found.append(f"line {number}: two braces: Systems Manager would take it for a parameter")
    for number, line in code_lines(script):
        for pattern, reason in FORBIDDEN.items():
            # How old a file is can only be told by the clock that gave it its time.
            if re.search(pattern, line) and not re.search(r"\bdate -r ", line):
                found.append(f"line {number}: {line.strip()}: {reason}")
        for command in re.findall(r"\b(?:systemctl|journalctl) ([^|;)]*)", line):
            words = command.replace('"$UNIT"', "").split()
            for word in words:
                if word.startswith("-") and word not in OPTIONS:
                    found.append(f"line {number}: systemd 219 may not know {word}")
        for options in re.findall(r"\bsystemd-run ((?:--\S+ )*)", line):
            for option in options.split():
                if option.partition("=")[0] not in RUN_OPTIONS:
                    found.append(f"line {number}: systemd-run {option} is not on the list of what systemd 219 knows")
        for verb in re.findall(r"\bsystemctl ([a-z-]+)", line):
            if verb not in VERBS:
                found.append(f"line {number}: systemctl {verb} is not on the list of what systemd 219 knows")
    drop_in = re.search(r"^put_drop_in\(\) \{\n(.*?)^\}", script.read_text(), re.M | re.S)
    settings = re.findall(r"(?:['\"]|\\n)([A-Z]\w+)=", drop_in[1]) if drop_in else []
    if sorted(settings) != sorted(SETTINGS):
        found.append(f"the drop-in sets {settings}; the list of what systemd 219 knows is {sorted(SETTINGS)}")
    return found
