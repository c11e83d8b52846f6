#!/usr/bin/env python3
"""Holds template.yaml against the rest of the repository: README, src/, events/.

Needs the Python packages that come with the SAM command line (PyYAML, botocore, aws-sam-translator, cfn-lint). Makes no call to AWS. Prints every
disagreement, one a line, and ends with 1 if there is any.
"""

import json
import os
import pathlib
import re
import sys

import botocore
import botocore.session
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]

# The translator wants to know a region; which one makes no difference.
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")

# What each setting that is checked by a pattern takes and refuses, at the edges of the accepted form.
EDGES = {
    "TopicArn": (
        ["", "arn:aws:sns:eu-west-1:123456789012:restarts", "arn:aws-us-gov:sns:us-gov-west-1:123456789012:a_b-c"],
        ["restarts", "arn:aws:sns:eu-west-1:123456789012:restarts.fifo", "arn:aws:sqs:eu-west-1:123456789012:restarts"],
    ),
    "MaxConcurrency": (["1", "50", "1%", "50%", "100%"], ["", "0", "0%", "101%", "-1", "1.5", "50 %", "01", "all"]),
    "MaxErrors": (["0", "1", "50", "0%", "10%", "100%"], ["", "101%", "-1", "1.5", "10 %", "01", "none"]),
}

# Settings that no parameter gives: the README's word for them, and the resource whose reference they are.
OWN_RESOURCES = {"DOCUMENT_NAME": ("own document", "RestartDocument")}

# Parameters that shape the stack and are no setting of the function.
STACK_PARAMETERS = {"Architecture", "LogRetentionDays"}

# Operations for which IAM knows no resource, so that their statement may say "*".
WITHOUT_RESOURCE = {
    "codedeploy:ListDeploymentTargets",
    "codedeploy:BatchGetDeploymentTargets",
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeAutoScalingInstances",
    "ssm:DescribeInstanceInformation",
    "ssm:ListCommandInvocations",
}

# Events that the rule must let through, all others must not pass.
PASSING_EVENTS = {"pipeline-succeeded", "pipeline-succeeded-integers", "pipeline-succeeded-strings", "pipeline-rollback"}

problems = []


def expect(holds, problem):
    """Notes the problem unless the condition holds."""
    if not holds:
        problems.append(problem)


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


def settings_table():
    """The README's rows `| environment | parameter | default | accepted |`, as dictionaries."""
    lines = (ROOT / "README.md").read_text().splitlines()
    heads = [i for i, line in enumerate(lines) if re.match(r"^\|\s*environment\s*\|.*parameter.*\|\s*default\s*\|\s*accepted\s*\|", line, re.I)]
    expect(len(heads) == 1, f"README.md has {len(heads)} tables `| environment | parameter | default | accepted |`, not one")
    rows = []
    for line in lines[heads[0] + 2 :] if heads else []:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        environment, parameter, default, accepted = cells[:4]
        rows.append(
            {
                "environment": environment.strip("`"),
                "parameter": (re.findall(r"`([A-Za-z0-9]+)`", parameter) or [parameter])[-1],
                "default": (re.findall(r"`([^`]*)`", default) or [None])[0],
                "accepted": accepted,
            }
        )
    return rows


def check_settings(template):
    """The README's table, the parameters, the function's environment and src/settings.rs name the same settings with the same values."""
    parameters = template["Parameters"]
    environment = template["Resources"]["RestartFunction"]["Properties"]["Environment"]["Variables"]
    rows = settings_table()
    if not rows:
        return
    expect(
        [row["environment"] for row in rows] == list(environment),
        f"README's settings {[row['environment'] for row in rows]} are not the function's environment {list(environment)}, in this order",
    )
    by_parameter = {row["parameter"] for row in rows if row["environment"] not in OWN_RESOURCES}
    expect(
        by_parameter | STACK_PARAMETERS == set(parameters),
        f"README's settings {sorted(by_parameter)} are not the template's parameters {sorted(set(parameters) - STACK_PARAMETERS)}",
    )
    settings_source = without_comments((ROOT / "src/settings.rs").read_text().split("#[cfg(test)]")[0])
    named = set(re.findall(r'"([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)"', settings_source))
    expect(
        named == set(environment),
        f"src/settings.rs names {sorted(named)}, the template hands over {sorted(environment)}",
    )
    for row in rows:
        name, variable = row["parameter"], row["environment"]
        in_source = re.search(rf'"{variable}",\s*(?:None|Some\("([^"]*)"\))', settings_source)
        expect(
            in_source and in_source.group(1) == row["default"],
            f"default of {variable}: README {row['default']!r}, src/settings.rs {in_source and in_source.group(1)!r}",
        )
        if variable in OWN_RESOURCES:
            word, resource = OWN_RESOURCES[variable]
            expect(name == word, f"README says that {variable} comes from {name!r}, it is the stack's {word!r}")
            expect(environment.get(variable) == {"Ref": resource}, f"{variable} is not the name of the stack's own {resource}")
            continue
        parameter = parameters.get(name)
        if parameter is None or variable not in environment:
            continue
        expect(
            f'"Ref": "{name}"' in json.dumps(environment[variable]),
            f"{variable} does not get its value from the parameter {name}",
        )
        expect(parameter.get("Description", "").strip() != "", f"parameter {name} has no description")
        default = parameter.get("Default")
        if row["default"] is None:
            expect(default in (None, ""), f"README says that {variable} has no default, the template's {name} has {default!r}")
        else:
            expect(str(default) == row["default"], f"default of {variable}: README {row['default']!r}, template {default!r}")
        check_accepted(name, parameter, row["accepted"])


def check_accepted(name, parameter, accepted):
    """What the README says is accepted is what the parameter accepts."""
    quoted = re.findall(r"`([^`]*)`", accepted)
    if "AllowedValues" in parameter:
        values = [str(value) for value in parameter["AllowedValues"]]
        expect([value for value in quoted if value in values] == values, f"{name} allows {values}, README says: {accepted}")
    elif parameter["Type"] == "Number":
        span = re.search(r"(\d[\d,]*) to (\d[\d,]*)", accepted)
        limits = tuple(int(limit.replace(",", "")) for limit in span.groups()) if span else None
        expect(
            limits == (parameter["MinValue"], parameter["MaxValue"]),
            f"{name} allows {parameter['MinValue']} to {parameter['MaxValue']}, README says: {accepted}",
        )
    else:
        pattern = re.compile(parameter["AllowedPattern"])
        taken, refused = EDGES[name]
        for value in taken:
            expect(pattern.fullmatch(value), f"{name} refuses {value!r}")
        for value in refused:
            expect(not pattern.fullmatch(value), f"{name} accepts {value!r}")
        for value in quoted if name in ("MaxConcurrency", "MaxErrors") else []:
            expect(pattern.fullmatch(value), f"README says that {name} accepts {value!r}, the template refuses it")
        if parameter.get("Default") is not None:
            expect(pattern.fullmatch(parameter["Default"]), f"the default of {name} does not fit its own pattern")


def without_comments(source):
    """Rust source without line comments; good enough to look for names and calls."""
    return re.sub(r"(?m)(^|\s)//.*$", r"\1", source)


def called_operations():
    """The operations that src/ calls, as `service:Operation`, found as `.operation_name()` of the services that Cargo.toml depends on."""
    services = re.findall(r"(?m)^aws-sdk-([a-z0-9]+)\s*=", (ROOT / "Cargo.toml").read_text())
    expect(services, "Cargo.toml depends on no AWS service")
    session = botocore.session.get_session()
    operations = {}
    for service in services:
        for operation in session.get_service_model(service).operation_names:
            operations.setdefault(botocore.xform_name(operation), []).append(f"{service}:{operation}")
    called = {}
    for path in sorted((ROOT / "src").rglob("*.rs")):
        for name in re.findall(r"\.\s*([a-z][a-z0-9_]*)\s*\(\s*\)", without_comments(path.read_text())):
            if name in operations:
                called.setdefault(name, path.relative_to(ROOT))
    return operations, called


def check_policy(template):
    """The role may do exactly what src/ does, and says "*" only where IAM knows no resource."""
    statements = [
        statement
        for policy in template["Resources"]["RestartFunction"]["Properties"]["Policies"]
        for statement in policy["Statement"]
    ]
    allowed = set()
    for statement in statements:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        allowed.update(actions)
        expect(statement["Effect"] == "Allow" and statement.get("Sid"), f"a statement without purpose: {statement}")
        expect(not any("*" in action for action in actions), f"{statement['Sid']} allows a wildcard")
        if any(action == "ssm:SendCommand" for action in actions) and ":document/" in json.dumps(statement["Resource"]):
            own = f"document/${{{OWN_RESOURCES['DOCUMENT_NAME'][1]}}}"
            expect(json.dumps(statement["Resource"]).endswith(f'{own}"}}'), f"{statement['Sid']} sends another document than the stack's own")
        if statement["Resource"] == "*":
            expect(set(actions) <= WITHOUT_RESOURCE, f'{statement["Sid"]} says "*" for an operation that knows resources')
    operations, called = called_operations()
    for name, path in called.items():
        expect(set(operations[name]) & allowed, f"{path} calls {name}, which the policy does not allow")
    for action in sorted(allowed):
        used = any(action in operations[name] for name in called)
        expect(used, f"the policy allows {action}, which src/ does not call")


def matches(pattern, event):
    """Whether EventBridge would let the event pass: every key of the pattern is there, with one of its values (plain values only)."""
    return all(
        key in event and (matches(wanted, event[key]) if isinstance(wanted, dict) else event[key] in wanted)
        for key, wanted in pattern.items()
    )


def check_rule(template):
    """The rule lets the succeeded pipelines of events/ pass, and nothing else."""
    pattern = template["Resources"]["RestartFunction"]["Properties"]["Events"]["PipelineSucceeded"]["Properties"]["Pattern"]
    found = {path.stem: json.loads(path.read_text()) for path in (ROOT / "events").glob("*.json")}
    expect(PASSING_EVENTS <= set(found), f"events/ lacks {sorted(PASSING_EVENTS - set(found))}")
    for name, event in sorted(found.items()):
        expect(matches(pattern, event) == (name in PASSING_EVENTS), f"events/{name}.json: the rule decides wrongly")
    listed = set(re.findall(r"(?m)^\| `([a-z-]+)\.json` \|", (ROOT / "events/README.md").read_text()))
    expect(listed == set(found), f"events/README.md lists {sorted(listed)}, the folder holds {sorted(found)}")


def check_translated(template):
    """The CloudFormation template that SAM makes of it passes cfn-lint too, which sees more there than in the source."""
    from cfnlint import lint
    from cfnlint.config import ManualArgs
    from samtranslator.translator.transform import transform

    class NoManagedPolicies:
        """The template uses no managed policy by its bare name, so none has to be looked up."""

        def load(self):
            return {}

    source = json.loads(json.dumps(template))
    # The package step replaces this folder by the place of the archive.
    source["Resources"]["RestartFunction"]["Properties"]["CodeUri"] = "s3://bucket/key"
    translated = transform(source, {}, NoManagedPolicies())
    for match in lint(json.dumps(translated), config=ManualArgs(regions=["us-east-1"])):
        expect(False, f"cfn-lint on the translated template: {match}")
    types = [resource["Type"] for resource in translated["Resources"].values()]
    for kind in ("AWS::Lambda::Function", "AWS::Events::Rule", "AWS::IAM::Role", "AWS::Lambda::Permission", "AWS::Lambda::EventInvokeConfig"):
        expect(types.count(kind) == 1, f"the translated template has {types.count(kind)} of {kind}, not one")


def check_function(template):
    """The limits that the function's own timing rests on."""
    function = template["Resources"]["RestartFunction"]
    properties = function["Properties"]
    expect(properties["Timeout"] == 900, "the function's timeout is not 900 s")
    expect(properties["MemorySize"] == 256, "the function's memory is not 256 MB")
    expect((properties["Runtime"], properties["Handler"]) == ("provided.al2023", "bootstrap"), "runtime or handler is another one")
    expect(template["Parameters"]["Architecture"]["Default"] == "arm64", "the default architecture is not arm64")


def main():
    """Runs every check, and shows all problems at once."""
    template = yaml.load((ROOT / "template.yaml").read_text(), TemplateLoader)
    for check in (check_function, check_settings, check_policy, check_rule, check_translated):
        before = len(problems)
        check(template)
        print(f"{check.__name__}: {'ok' if len(problems) == before else 'PROBLEMS'} - {check.__doc__}")
    for problem in problems:
        print(f"template: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
