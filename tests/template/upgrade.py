"""What becomes of a stack of the first edition when it is updated to this template: nothing that holds state may be replaced or deleted, which CloudFormation does in
silence. first-edition.json is what SAM made of that edition's template.yaml (commit c7b5a92), less texts for people, rules, and the script."""

import itertools
import json
import pathlib

from cfnlint.schema import PROVIDER_SCHEMA_MANAGER

import stacks

FIRST_EDITION = pathlib.Path(__file__).parent / "first-edition.json"
# What goes, and why nothing is lost by it.
GONE = {"Schedule": "it holds nothing, and RestartSchedule takes its place, in a group"}
# A change of these fails, although CloudFormation's schema would have it work: https://github.com/aws/aws-cdk/issues/34216
UNCHANGEABLE = {"AWS::Scheduler::Schedule": ["GroupName"]}

# Which of the choices an operator of the first edition had.
CHOICES = [
    [{}, stacks.NAMED, stacks.DEPLOYMENTS],
    [{}, stacks.SCHEDULE],
    [{}, stacks.EMAIL, stacks.GIVEN_TOPIC, stacks.GIVEN_TOPIC | stacks.TOPIC_KEY],
    [{}, stacks.ALARM_TOPIC],
    [{}, stacks.TAG | stacks.BOUNDARY | stacks.OWN_KEY],
]


def check(finder, source):
    """Every kind of stack of the first edition keeps what it has."""
    old = json.loads(FIRST_EDITION.read_text())
    # An update keeps the values of all parameters, and so needs them to be there.
    gone = set(old["Parameters"]) - set(source["Parameters"])
    finder.expect(not gone, f"an update would find no parameters {sorted(gone)} any more")
    for chosen in itertools.product(*CHOICES):
        values = {name: value for choice in chosen for name, value in choice.items()}
        before, after = (stacks.stack(template, values)["Resources"] for template in (old, source))
        for name, resource in before.items():
            if name not in after:
                finder.expect(name in GONE, f"an update with {values} would delete {name}, an {resource['Type']}")
                continue
            for path in replacing(resource, after[name]):
                finder.expect(False, f"an update would replace {name}, an {resource['Type']}: its {path} is another one")


def replacing(before, after):
    """The properties whose change replaces a resource, or makes the update fail, as far as they changed."""
    kind = before["Type"]
    if after["Type"] != kind:
        return ["Type"]
    schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema(stacks.REGION, kind).schema
    paths = [path.removeprefix("/properties/") for path in schema.get("createOnlyProperties", [])]
    return [path for path in [*paths, *UNCHANGEABLE.get(kind, [])] if value(before, path) != value(after, path)]


def value(resource, path):
    """A property, or nothing."""
    found = resource.get("Properties", {})
    for name in path.split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found
