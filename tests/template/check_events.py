#!/usr/bin/env python3
"""Which events start the function, and which parameters a stack takes, according to an emulator of AWS that others wrote.

    tests/template/check_events.py [--python .venv/emulator/bin/python] [--template FILE]

The emulator's CloudFormation makes the rules of template.yaml for several sets of parameters, and its EventBridge holds their patterns against the files of
events/ and against small changes of them. Its CloudFormation also judges the Rules section: every forbidden combination of parameters must be refused, with our
own words, and every combination that makes sense must not. Needs PyYAML and botocore, and the emulator's own environment (tests/e2e/requirements.txt).
"""

import argparse
import copy
import json
import pathlib
import re
import sys

import agreement
import emulator
import stacks
import template

PIPELINE_SUCCESSES = {"pipeline-succeeded", "pipeline-succeeded-integers", "pipeline-succeeded-strings", "pipeline-rollback"}
PIPELINE_ENDS = PIPELINE_SUCCESSES | {"pipeline-failed", "pipeline-stopped", "pipeline-superseded"}
DEPLOYMENT_SUCCESSES = {"codedeploy-success"}
DEPLOYMENT_ENDS = DEPLOYMENT_SUCCESSES | {"codedeploy-failure"}

# Each stack, and the files of events/ that start its function. All pipelines of events/ are `my-pipeline`.
PASSING = {
    "all pipelines": ({}, PIPELINE_ENDS),
    "all pipelines after success": (stacks.SUCCESS, PIPELINE_SUCCESSES),
    "own pipeline among others": ({"PipelineNames": "other-pipeline,my-pipeline"}, PIPELINE_ENDS),
    "own pipeline after a blank": ({"PipelineNames": "other-pipeline, my-pipeline"}, PIPELINE_ENDS),
    "other pipelines": ({"PipelineNames": "other-pipeline,my-pipeline-2,my"}, set()),
    "deployments": (stacks.DEPLOYMENTS, DEPLOYMENT_ENDS),
    "deployments after success": (stacks.DEPLOYMENTS | stacks.SUCCESS, DEPLOYMENT_SUCCESSES),
}

# The states of each kind of event (CodePipeline and CodeDeploy User Guides, "Monitoring with EventBridge") that are a success, another end, or no end.
SUCCESSES = {"aws.codepipeline": ["SUCCEEDED"], "aws.codedeploy": ["SUCCESS"]}
OTHER_ENDS = {"aws.codepipeline": ["FAILED", "STOPPED", "SUPERSEDED", "CANCELED"], "aws.codedeploy": ["FAILURE", "STOP"]}
NO_ENDS = {"aws.codepipeline": ["STARTED", "RESUMED", "STOPPING"], "aws.codedeploy": ["START", "READY"]}
# Other kinds of events of the same sources that tell of a success too.
OTHER_KINDS = {
    "aws.codepipeline": ["CodePipeline Stage Execution State Change", "CodePipeline Action Execution State Change"],
    "aws.codedeploy": ["CodeDeploy Instance State-change Notification"],
}

# Combinations of parameters that a rule forbids, each with the rule. Every one differs from an allowed one by one parameter.
FORBIDDEN = [
    ("ListNeedsThePipelineTrigger", stacks.DEPLOYMENTS | stacks.NAMED),
    ("ListNeedsThePipelineTrigger", stacks.DEPLOYMENTS | {"PipelineNames": "my-pipeline"}),
    ("ScheduleNeedsAGroup", {"ScheduleExpression": "rate(7 days)"}),
    ("ScheduleNeedsAGroup", {"ScheduleExpression": "rate(7 days)", "ScheduleApplication": "a"}),
    ("ScheduleNeedsAGroup", {"ScheduleExpression": "rate(7 days)", "ScheduleDeploymentGroup": "g"}),
    ("GroupNeedsASchedule", {"ScheduleApplication": "a"}),
    ("GroupNeedsASchedule", {"ScheduleDeploymentGroup": "g"}),
    ("GroupNeedsASchedule", {"ScheduleApplication": "a", "ScheduleDeploymentGroup": "g"}),
    ("EmailIsForTheOwnTopic", stacks.GIVEN_TOPIC | stacks.EMAIL),
    ("KeyIsForTheGivenTopic", stacks.TOPIC_KEY),
    ("KeyIsForTheGivenTopic", stacks.TOPIC_KEY | stacks.OWN_KEY),
]


def check(finder, aws, source, root):
    """Everything, with one running emulator; gives how many questions it answered."""
    return check_patterns(finder, aws, source, root) + check_parameters(finder, aws, source, stacks.every_set())


def only_rules(source, values):
    """The part of the template that decides which events start the function: its parameters, its conditions, and its rules without their targets. The whole
    of it would need what the emulator has not (SSM documents, alarms by metric math). Its conditions know no Fn::Join, so they are decided here."""
    part = {key: value for key, value in source.items() if key in ("AWSTemplateFormatVersion", "Parameters", "Rules")}
    part["Conditions"] = {name: {"Fn::Equals": ["true", str(holds).lower()]} for name, holds in stacks.conditions(source, values).items()}
    part["Resources"] = {name: copy.deepcopy(resource) for name, resource in source["Resources"].items() if resource["Type"] == "AWS::Events::Rule"}
    for rule in part["Resources"].values():
        del rule["Properties"]["Targets"]
    return part


def check_patterns(finder, aws, source, root):
    """The right events of events/ start the function; so does what differs from them in nothing that counts, and nothing else does."""
    events = {path.stem: json.loads(path.read_text()) for path in sorted((root / "events").glob("*.json"))}
    listed = set(re.findall(r"(?m)^\| `([a-z-]+)\.json` \|", (root / "events/README.md").read_text()))
    finder.expect(listed == set(events), f"events/README.md lists {sorted(listed)}, the folder holds {sorted(events)}")
    asked = 0
    for name, (values, passing) in PASSING.items():
        finder.expect(passing <= set(events), f"events/ lacks {sorted(passing - set(events))}")
        patterns = aws.patterns(only_rules(source, values), values)
        finder.expect(len(patterns) == 1, f"with {name}, the rules are {sorted(patterns)}, not one")
        for stem, event in events.items():
            for change, changed, wanted in [("", event, stem in passing), *(changes(event, values) if stem in passing else [])]:
                fits = [rule for rule, pattern in patterns.items() if aws.fits(pattern, changed)]
                asked += len(patterns)
                finder.expect(bool(fits) == wanted, f"with {name}, events/{stem}.json{change} {'starts' if fits else 'does not start'} the function")
    return asked


def changes(event, values):
    """Small changes of an event that starts the function of a stack with these parameters: what was done to it, the event, and whether it still has to."""
    source, kind, detail = event["source"], event["detail-type"], event["detail"]
    state = detail["state"]
    starting = SUCCESSES[source] + ([] if values.get("After") == "success" else OTHER_ENDS[source])

    def changed(same, name, *value, inside=False):
        copied = copy.deepcopy(event)
        part = copied["detail"] if inside else copied
        if value:
            (part[name],) = value
            return f" with {name} {value[0]!r}", copied, same
        del part[name]
        return f" without {name}", copied, same

    # What counts.
    for other in [*SUCCESSES[source], *OTHER_ENDS[source], *NO_ENDS[source], state.lower(), f"{state} ", state[:-1], ""]:
        if other != state:
            yield changed(other in starting, "state", other, inside=True)
    for other in [*OTHER_KINDS[source], kind.upper(), f"{kind}s"]:
        yield changed(False, "detail-type", other)
    for other in sorted({*SUCCESSES, "my.own.source"} - {source}):
        yield changed(False, "source", other)
    # A bus may be open to other accounts, whose events the function could do nothing about.
    for other in ["210987654321", stacks.ACCOUNT[:-1], ""]:
        yield changed(False, "account", other)
    for missing in ("source", "detail-type", "detail"):
        yield changed(False, missing)
    yield changed(False, "state", inside=True)
    if "pipeline" in detail:
        for other in ["another-pipeline", detail["pipeline"].upper(), f"{detail['pipeline']}-2", ""]:
            yield changed("PipelineNames" not in values, "pipeline", other, inside=True)
    # What does not.
    yield changed(True, "region", "eu-west-1")
    yield changed(True, "time", "2027-01-01T00:00:00Z")
    yield changed(True, "resources", [])
    yield changed(True, "a-new-field", {"state": "FAILED"})
    yield changed(True, "a-new-field", "x", inside=True)


def check_parameters(finder, aws, source, sets):
    """Combinations of parameters that a rule forbids are refused in that rule's words, and values beyond the edge of a pattern in the parameter's; all of these
    sets are taken."""
    # A stack needs a resource; what is asked is decided before any is made.
    shell = {key: value for key, value in source.items() if key in ("AWSTemplateFormatVersion", "Parameters", "Rules")}
    shell["Resources"] = {"Nothing": {"Type": "AWS::CloudFormation::WaitConditionHandle"}}
    asked = 0

    def refusal(values):
        nonlocal asked
        asked += 1
        try:
            aws.allow(shell, values)
        except emulator.Refused as refused:
            return str(refused)

    forbidden = {rule for rule, _ in FORBIDDEN}
    finder.expect(forbidden == set(source["Rules"]), f"there are the rules {sorted(source['Rules'])}, and forbidden combinations for {sorted(forbidden)}")
    for rule, values in FORBIDDEN:
        words = [assertion["AssertDescription"] for assertion in source["Rules"].get(rule, {}).get("Assertions", [])]
        told = refusal(values)
        finder.expect(told and any(word in told for word in words), f"{values} should be refused by {rule}; CloudFormation says {told!r}")
    for values in sets:
        told = refusal(values)
        finder.expect(told is None, f"{values} should be taken; CloudFormation says {told!r}")
    for name, (_, refused) in agreement.EDGES.items():
        for value in refused:
            told = refusal({name: value})
            word = source["Parameters"].get(name, {}).get("ConstraintDescription", name)
            finder.expect(told and word in told, f"{name} {value!r} should be refused as no {word}; CloudFormation says {told!r}")
    return asked


def main():
    """Starts the emulator, asks it everything, and shows all problems at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=str(template.ROOT / ".venv/emulator/bin/python"), help="interpreter of the emulator's environment")
    parser.add_argument("--template", type=pathlib.Path, default=template.TEMPLATE)
    arguments = parser.parse_args()
    finder = template.Finder()
    with emulator.running(template.tool(arguments.python, emulator.REQUIREMENTS)) as aws:
        asked = check(finder, aws, template.read(arguments.template.read_text()), template.ROOT)
    print(f"events: {'PROBLEMS' if finder.problems else 'ok'}, {asked} questions to the emulator")
    for problem in finder.problems:
        print(f"events: {problem}", file=sys.stderr)
    sys.exit(1 if finder.problems else 0)


if __name__ == "__main__":
    main()
