"""template.yaml as data, and a collector of what is wrong with it: what the checks of this folder share."""

import pathlib
import shutil
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "template.yaml"
# Where the programs are that make what is checked: document/build.py, and .ci/release.py.
sys.path += [str(ROOT / "document"), str(ROOT / ".ci")]


class TemplateLoader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms, which become their long ones."""


def short_form(loader, suffix, node):
    """`!Ref X` → {"Ref": X}, `!GetAtt A.B` → {"Fn::GetAtt": ["A", "B"]}, `!Sub …` → {"Fn::Sub": …}."""
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    if suffix == "GetAtt" and isinstance(value, str):
        value = value.split(".", 1)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


TemplateLoader.add_multi_constructor("!", short_form)


class Finder:
    """Collects problems, so that all of them are told at once."""

    def __init__(self):
        self.problems = []

    def expect(self, holds, problem):
        """Notes the problem, once, unless the condition holds."""
        if not holds and problem not in self.problems:
            self.problems.append(problem)
        return bool(holds)


def tool(path, requirements):
    """The path of a tool that has an environment of its own; tells how to make that if it is not there."""
    if shutil.which(path) is None:
        sys.exit(f"there is no {path}: .ci/run makes its environment, from {requirements}")
    return path


def read(text):
    """A template's text as data."""
    return yaml.load(text, TemplateLoader)
