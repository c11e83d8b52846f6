#!/usr/bin/env python3
"""The Linux script's reading of the agent's configuration, held against a YAML library's.

    python3 tests/document/check_configuration.py [--files N] [--seed N]

The agent reads its configuration with YAML; the script reads it with the shell. Random files, made of what people really write (keys twice, in quotes, with or
without a colon in front, comments, indentation, DOS line ends) and of what YAML knows besides (anchors, flow style, values over several lines, more than one
document), are read by both: whatever the script does not call uncertain must be what YAML says. The files of `CERTAIN` it must not call uncertain.

Needs PyYAML, and dash, bash and busybox.
"""

import argparse
import pathlib
import random
import re
import subprocess
import sys
import tempfile

import yaml

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "document/restart-agent.sh"
SHELLS = (["dash"], ["bash"], ["busybox", "sh"])
# Seconds for one shell to read all files.
LIMIT = 120

DEFAULTS = {
    "program_name": "codedeploy-agent",
    "pid_dir": "/opt/codedeploy-agent/state/.pid",
    "root_dir": "/opt/codedeploy-agent/deployment-root",
    "ongoing_deployment_tracking": "ongoing-deployment",
    "log_dir": "/var/log/aws/codedeploy-agent",
    "log_aws_wire": "false",
}
# What must be read, each with one of its values.
CERTAIN = {
    "---\n:root_dir: '/a'\n:verbose: false\n": ("root_dir", "/a"),
    ":root_dir: /a\n:pid_dir: /p\n:root_dir: /b\n": ("root_dir", "/b"),
    "\"pid_dir\": \"/p\"  # ours\n": ("pid_dir", "/p"),
    ":root_dir :  '/b'\n": ("root_dir", "/b"),
    ":root_dir: /a\r\n:log_dir: '/l'\r\n": ("root_dir", "/a"),
    "    :log_dir: '/l'\n    :root_dir: '/b'\n": ("root_dir", "/b"),
    "---\n:root_dir: /a\n---\n:root_dir: /b\n": ("root_dir", "/a"),
    "root_dir: /a\n:root_dir: /b\n": ("root_dir", "/a"),
    ":proxy_uri:\n:list:\n  - /x\n:root_dir: /a b # c\n": ("root_dir", "/a b"),
    "": ("root_dir", DEFAULTS["root_dir"]),
}


def reader(folder):
    """A shell script that prints what the functions of the restart script make of each file."""
    text = SCRIPT.read_text()
    names = ("trimmed", "read_configuration", "name_files", "read_entry", "concerns_us", "split_entry", "take_value", "is_absolute")
    functions = [re.search(rf"^{name}\(\) (?:\{{\n.*?^\}}|\{{.*?\}})$", text, re.M | re.S)[0] for name in names]
    place = "CONFIG=/etc/codedeploy-agent/conf/codedeployagent.yml\n"
    if "".join(functions).count(place) != 1:
        sys.exit(f"{SCRIPT.name} does not name its configuration as this check expects: {place}")
    values = "|".join(f"${name}" for name in ("PROGRAM", "PID_DIR", "ROOT_DIR", "TRACKING_NAME", "LOG_DIR", "WIRE_LOG"))
    file = folder / "reader.sh"
    file.write_text(
        "set -u\nLC_ALL=C\nAGENT=/opt/codedeploy-agent\n"
        + "\n".join(functions).replace(place, 'CONFIG=$1\n')
        + f'\nfor file; do\n  read_configuration "$file"\n  if [ -n "$UNCERTAIN" ]; then echo; else echo "{values}"; fi\ndone\n'
    )
    return file


def truth(text):
    """What the agent makes of it, in the order of DEFAULTS; nothing where it would not start with it."""
    try:
        first = next(yaml.safe_load_all(text), None)
    except yaml.YAMLError:
        return None
    if not isinstance(first, dict):
        return None if first is not None else list(DEFAULTS.values())
    told = {}
    for colon in (True, False):
        told.update({str(key).removeprefix(":"): value for key, value in first.items() if str(key).startswith(":") == colon})
    # Booleans and numbers as they are written.
    return [default if (value := told.get(name, default)) is None else str(value).lower() if isinstance(value, bool) else str(value) for name, default in DEFAULTS.items()]


def value_of(rng, key):
    if key == "log_aws_wire":
        value = rng.choice(["true", "false"])
    elif key in ("verbose", "max_revisions"):
        value = "5"
    elif key == "proxy_uri":
        return rng.choice(["", "http://x:80", "&p http://q", '"http://a:b@c" # x', "{a: b}"])
    elif key in ("program_name", "ongoing_deployment_tracking"):
        value = rng.choice(["codedeploy-agent", "other", "a b", "run-x"])
    else:
        value = rng.choice(["/a/b", "/srv/deploy root", "/mnt/x/", "/x#y", "rel/dir", "~", "", "/it's", "/c:d", "/c: d"])
    form = rng.choice(["{}"] * 6 + ["'{}'"] * 4 + ['"{}"'] * 3 + ["&a {}", "|\n  {}", ">-\n   {}", "\n  {}", "{}\n  b", "!!str {}"])
    return form.format(value) + rng.choice([""] * 8 + ["  # c", "\t# c", " #", "   ", " trailing"])


def entry(rng):
    key = rng.choice([*DEFAULTS, "verbose", "proxy_uri", "max_revisions"])
    value = value_of(rng, key)
    written = rng.choice([":", ":", ""]) + key
    written = rng.choice(["{}"] * 8 + ['"{}"', "'{}'"]).format(written)
    if rng.random() < 0.03:
        return f"? {written}\n: {value}"
    return written + rng.choice([": "] * 4 + [" : ", ":  ", ":\t", ":"]) + value


def file_of(rng):
    lines = [rng.choice(["---", "---", "--- # x", "%YAML 1.1\n---", "--- "])] if rng.random() < 0.6 else []
    odd = ["# c", "", "   ", "  # in", "...", "---", "- a", "<<: *a", '{ ":root_dir": "/f" }', ":nest:\n    :root_dir: /in\n    b: 1", ":list:\n- /a\n- b", ":list:\n  - /a"]
    lines += [rng.choice(odd) if rng.random() < 0.1 else entry(rng) for _ in range(rng.randint(0, 8))]
    indent = rng.choice([""] * 6 + ["  "])
    text = "\n".join(indent + line for line in "\n".join(lines).split("\n")) + rng.choice(["\n", "\n", "\n", ""])
    return text.replace("\n", "\r\n") if rng.random() < 0.1 else text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=3000, help="random files")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    texts = [*CERTAIN, *(file_of(rng) for _ in range(arguments.files))]
    truths = [truth(text) for text in texts]
    problems, read = [], 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for number, text in enumerate(texts):
            (folder / str(number)).write_bytes(text.encode())
        for shell in SHELLS:
            run = [*shell, reader(folder), *(str(number) for number in range(len(texts)))]
            said = subprocess.run(run, cwd=folder, capture_output=True, timeout=LIMIT, check=True).stdout.decode().splitlines()
            if len(said) != len(texts):
                sys.exit(f"{shell}: {len(said)} answers for {len(texts)} files")
            for text, true, line in zip(texts, truths, said):
                read += bool(line)
                if text in CERTAIN:
                    name, value = CERTAIN[text]
                    if not line or line.split("|")[list(DEFAULTS).index(name)] != value:
                        problems.append(f"{shell[0]}: {text!r}: {name} must be {value!r}, read: {line or 'uncertain'}")
                elif line and true is not None and line.split("|") != true:
                    problems.append(f"{shell[0]}: {text!r}: YAML says {true}, read: {line}")
    for problem in problems[:20]:
        print(problem)
    unread = sum(true is None for true in truths)
    print(f"{len(texts)} files ({unread} that no agent would start with), {read} of {len(SHELLS) * len(texts)} readings certain, {len(problems)} of them wrong")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
