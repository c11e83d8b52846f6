#!/usr/bin/env python3
"""Writes target/emulator/template.yaml: template.yaml less what the emulator of tests/e2e/bus.py cannot take. samconfig.toml's environment `emulator` builds and deploys it.

    tests/e2e/bus_template.py && sam build --config-env emulator

LEFT_OUT and REWRITTEN are the whole list; bus.py checks that the emulator still cannot take each of them. Needs PyYAML.
"""

import json
import os
import pathlib
import sys
import typing

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/template"))

import template as source

TEMPLATE = ROOT / "target/emulator/template.yaml"


class LeftOut(typing.NamedTuple):
    """A resource that the emulator does not take."""

    # What stands in the place of a reference to it.
    name: str
    # What the emulator answers to it.
    refusal: str


LEFT_OUT = {
    # The simulated AWS has them already, under these names.
    "RestartDocument": LeftOut("restart-agent", "Unrecognized resource types: [AWS::SSM::Document]"),
    "WindowsRestartDocument": LeftOut("restart-windows-agent", "Unrecognized resource types: [AWS::SSM::Document]"),
}

# Conditions that the emulator gets wrong without a word. Every one with Fn::Join in it is false there: it joins nothing in a condition. Fn::Select it knows; the
# first of the names tells the same, unless that one alone is empty.
REWRITTEN = {
    "AllPipelines": {"Fn::Equals": [{"Fn::Select": [0, {"Ref": "PipelineNames"}]}, ""]},
}


def adapted(template):
    """A template for the emulator."""
    for resource in LEFT_OUT:
        template["Resources"].pop(resource, None)
    template = without_references(template)
    for condition, expression in REWRITTEN.items():
        # One that is not there any more is an error.
        template["Conditions"].pop(condition)
        template["Conditions"][condition] = expression
    return template


def emulated(code, folder):
    """template.yaml for the emulator, for a file in `folder`; the function's code is to be found in `code`."""
    template = adapted(source.read(source.TEMPLATE.read_text()))
    template["Resources"]["RestartFunction"]["Properties"]["Code"] = os.path.relpath(code, folder)
    listing = template["Metadata"]["AWS::ServerlessRepo::Application"]
    for document in ("LicenseUrl", "ReadmeUrl"):
        listing[document] = os.path.relpath(ROOT / listing[document], folder)
    return template


def without_references(value):
    """The same with a plain name for each reference to what was left out."""
    if isinstance(value, list):
        return [without_references(each) for each in value]
    if not isinstance(value, dict):
        return value
    if value.get("Ref") in LEFT_OUT:
        return LEFT_OUT[value["Ref"]].name
    return {key: substituted(each) if key == "Fn::Sub" else without_references(each) for key, each in value.items()}


def substituted(value):
    """The argument of `!Sub`: a text, or a text and values of its own."""
    if isinstance(value, list):
        text, values = value
        return [substituted(text), without_references(values)]
    for resource, left_out in LEFT_OUT.items():
        value = value.replace(f"${{{resource}}}", left_out.name)
    return value


def write(template, path):
    """Writes a template; JSON is YAML too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(template, indent=2))


def main():
    """Writes the template, and says how it differs."""
    write(emulated(ROOT, TEMPLATE.parent), TEMPLATE)
    print(f"{TEMPLATE.relative_to(ROOT)}: template.yaml without {', '.join(LEFT_OUT)}, with another {', '.join(REWRITTEN)}")


if __name__ == "__main__":
    main()
