#!/usr/bin/env python3
"""Whether examples/*.yaml and docs/organisation.md do what an organisation needs of them.

    tests/template/check_examples.py [--python .venv/emulator/bin/python] [--checkov .venv/checkov/bin/checkov]

cfn-lint and checkov judge the templates, and an emulator's CloudFormation makes them. Of the policies that come of it an IAM simulator (tests/policy) is asked who may
publish and read: those of the organisation may, and their neighbours, with one thing changed, may not. What docs/organisation.md gives to the templates and to
restarter.yaml has to be theirs. Needs the Python packages that come with the SAM command line, Node, and the environments of both tools.
"""

import argparse
import json
import re
import subprocess
import sys
from typing import NamedTuple

import check_checkov
import check_events
import emulator
import shipped
import template
from stacks import ACCOUNT, REGION

import release

PAGE = "docs/organisation.md"
TOPIC, BUCKET = "central-topic.yaml", "artefact-bucket.yaml"
# Two of the organisation's accounts, one of them in the list of alarms, and its id with that of another.
MEMBER, UNLISTED = "111122223333", "444455556666"
ORGANISATION, OTHER_ORGANISATION = "o-a1b2c3d4e5", "o-a1b2c3d4e6"
PARAMETERS = {
    TOPIC: {"OrganizationId": ORGANISATION, "AlarmAccounts": f"{ACCOUNT},{MEMBER}"},
    BUCKET: {"OrganizationId": ORGANISATION},
}
# Values that must be refused before anything is made: each would let everybody in, or nobody.
REFUSED = [
    (TOPIC, {"OrganizationId": "*"}, "the id of an organisation"),
    (TOPIC, {"OrganizationId": MEMBER}, "the id of an organisation"),
    (TOPIC, {"AlarmAccounts": "*"}, "account ids of 12 digits"),
    (TOPIC, {"AlarmAccounts": f"{ACCOUNT},{MEMBER[1:]}"}, "account ids of 12 digits"),
    (BUCKET, {"OrganizationId": "o-*"}, "the id of an organisation"),
]
# What docs/organisation.md takes from its shell's variables.
SAMPLES = {
    "CodeBucket": "artefacts",
    "CodeKey": release.zip_name("arm64"),
    "DryRun": "true",
    "TopicArn": f"arn:aws:sns:{REGION}:{ACCOUNT}:central",
    "AlarmTopicArn": f"arn:aws:sns:{REGION}:{ACCOUNT}:central",
}
# What the caller's own account allows, so that only the policy asked about can refuse.
EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Sid": "Everything", "Effect": "Allow", "Action": "*", "Resource": "*"}]}
ALARMS = "cloudwatch.amazonaws.com"
# Seconds for all questions; they take two.
SIMULATOR_LIMIT = 60


class Question(NamedTuple):
    """May this principal do that to this resource, under these circumstances?"""

    words: str
    allowed: bool
    principal: str
    action: str
    on: str
    context: dict[str, str]


def role(account):
    """A function's role of this account, as CloudFormation names it for a stack of a set."""
    return f"arn:aws:iam::{account}:role/StackSet-codedeploy-agent-restarter-FunctionRole-AbCdEf123456"


def inside(organisation=ORGANISATION):
    """What IAM knows of a role of an organisation."""
    return {"aws:PrincipalOrgID": organisation}


def about_topic(topic):
    """Who may tell the topic, and who not."""
    alarm = {"aws:SourceAccount": MEMBER}
    return [
        Question("a function of the organisation", True, role(MEMBER), "sns:Publish", topic, inside()),
        Question("a function of an account whose alarms are not listed", True, role(UNLISTED), "sns:Publish", topic, inside()),
        Question("an alarm of a listed account", True, ALARMS, "sns:Publish", topic, alarm),
        Question("an alarm of the topic's own account", True, ALARMS, "sns:Publish", topic, {"aws:SourceAccount": ACCOUNT}),
        Question("a role of another organisation", False, role(MEMBER), "sns:Publish", topic, inside(OTHER_ORGANISATION)),
        Question("a role of no organisation", False, role(MEMBER), "sns:Publish", topic, {}),
        Question("an alarm of an account that is not listed", False, ALARMS, "sns:Publish", topic, {"aws:SourceAccount": UNLISTED}),
        Question("an alarm of nobody's", False, ALARMS, "sns:Publish", topic, {}),
        Question("another service for a listed account", False, "events.amazonaws.com", "sns:Publish", topic, alarm),
        Question("a member that subscribes", False, role(MEMBER), "sns:Subscribe", topic, inside()),
        Question("a member that changes the topic", False, role(MEMBER), "sns:SetTopicAttributes", topic, inside()),
        Question("a member that publishes to the topic beside it", False, role(MEMBER), "sns:Publish", f"{topic}-2", inside()),
    ]


def about_bucket(bucket):
    """Who may read the bucket, and who not."""
    zipped, tls = f"{bucket}/{release.zip_name('arm64')}", {"aws:SecureTransport": "true"}
    return [
        Question("a member that reads the zip", True, role(MEMBER), "s3:GetObject", zipped, inside() | tls),
        Question("a role of another organisation that reads the zip", False, role(MEMBER), "s3:GetObject", zipped, inside(OTHER_ORGANISATION) | tls),
        Question("a role of no organisation that reads the zip", False, role(MEMBER), "s3:GetObject", zipped, tls),
        Question("a member that reads the zip without TLS", False, role(MEMBER), "s3:GetObject", zipped, inside() | {"aws:SecureTransport": "false"}),
        Question("the owner that writes the zip without TLS", False, role(ACCOUNT), "s3:PutObject", zipped, {"aws:SecureTransport": "false"}),
        Question("a member that writes the zip", False, role(MEMBER), "s3:PutObject", zipped, inside() | tls),
        Question("a member that deletes the zip", False, role(MEMBER), "s3:DeleteObject", zipped, inside() | tls),
        Question("a member that lists the bucket", False, role(MEMBER), "s3:ListBucket", bucket, inside() | tls),
        Question("a member that changes the policy", False, role(MEMBER), "s3:PutBucketPolicy", bucket, inside() | tls),
    ]


def check(finder, aws, root):
    """Everything but checkov's part; gives how many questions the simulator answered."""
    texts = {path.name: path.read_text() for path in sorted((root / "examples").glob("*.yaml"))}
    sources = {name: template.read(text) for name, text in texts.items()}
    if not finder.expect(set(texts) == set(PARAMETERS), f"examples/ holds {sorted(texts)}, this check knows {sorted(PARAMETERS)}"):
        return 0
    for name, text in texts.items():
        for problem in [*shipped.lint(text), *(f"has the macro {macro}" for macro in shipped.macros(sources[name]))]:
            finder.expect(False, f"{name}: {problem}")
    for name, values, words in REFUSED:
        told = check_events.refuser(aws, sources[name])(PARAMETERS[name] | values)
        finder.expect(told and words in told, f"{name} should refuse {values} as not {words}; CloudFormation says {told!r}")
    check_page(finder, aws, (root / PAGE).read_text(), sources, template.read(release.restarter((root / "template.yaml").read_text())))
    return check_policies(finder, root, [*topic(aws, sources[TOPIC]), *bucket(finder, aws, sources[BUCKET])])


def made(aws, source, name):
    """The names of the resources that the emulator makes of a template, by their names in it."""
    return {each["LogicalResourceId"]: each["PhysicalResourceId"] for each in aws.made(source, PARAMETERS[name])}


def topic(aws, source):
    """The topic's policy as it was made, with what is to be asked about it."""
    arn = made(aws, source, TOPIC)["Topic"]
    yield json.loads(aws.client("sns").get_topic_attributes(TopicArn=arn)["Attributes"]["Policy"]), about_topic(arn)


def bucket(finder, aws, source):
    """The bucket's policy as it was made, with what is to be asked about it."""
    # The emulator encrypts every bucket in the same way, whatever is asked for.
    [rule] = source["Resources"]["Bucket"]["Properties"]["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    algorithm = rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"]
    finder.expect(algorithm == "AES256", f"{BUCKET} encrypts with {algorithm}, which other accounts could not read")
    name = made(aws, source, BUCKET)["Bucket"]
    yield json.loads(aws.client("s3").get_bucket_policy(Bucket=name)["Policy"]), about_bucket(f"arn:aws:s3:::{name}")


def check_policies(finder, root, asked):
    """The simulator's answers are those that they have to be."""
    every = [(number, question) for number, (_, questions) in enumerate(asked) for question in questions]
    request = {"account": ACCOUNT, "identities": [EVERYTHING], "resources": [policy for policy, _ in asked], "questions": []}
    for number, question in every:
        # A service has no policy of its own.
        identity = 0 if question.principal.startswith("arn:") else None
        place = {"principal": question.principal, "action": question.action, "on": question.on, "context": question.context}
        request["questions"].append({"identity": identity, "resource": number, **place})
    if not (root / "tests/policy/node_modules").is_dir():
        sys.exit("examples: the simulator is not installed; run: npm ci --prefix tests/policy")
    run = subprocess.run(["node", root / "tests/policy/simulate.mjs"], input=json.dumps(request), capture_output=True, text=True, timeout=SIMULATOR_LIMIT)
    if run.returncode != 0:
        raise RuntimeError(f"the simulator ended with {run.returncode}: {run.stderr.strip()}")
    for (_, question), answer in zip(every, json.loads(run.stdout)["answers"], strict=True):
        right = answer == "Allowed" if question.allowed else answer in ("ImplicitlyDenied", "ExplicitlyDenied")
        finder.expect(right, f"{question.words} must be {'allowed' if question.allowed else 'refused'} ({question.action}), and is {answer}")
    return len(every)


def check_page(finder, aws, page, examples, restarter):
    """docs/organisation.md gives the templates their parameters, restarter.yaml takes those of the stack set together, and its release is this one."""
    for name, words in re.findall(r"--template-file examples/(\S+) \\\n\s+--parameter-overrides (.*)", page):
        given = set(re.findall(r"(\w+)=", words))
        finder.expect(name in examples and given == set(examples[name]["Parameters"]), f"{PAGE} gives {sorted(given)} to {name}, which has other parameters")
    for name in examples:
        finder.expect(f"--template-file examples/{name} " in page, f"{PAGE} does not deploy {name}")
    given = dict(re.findall(r"ParameterKey=(\w+),ParameterValue=(\S+)", page))
    # The emulator takes a parameter that there is not.
    unknown = sorted(set(given) - set(restarter["Parameters"]))
    finder.expect(not unknown, f"{PAGE} gives the stack set {unknown}, which restarter.yaml has not")
    told = check_events.refuser(aws, restarter)({name: value if value.isalpha() else SAMPLES.get(name, value) for name, value in given.items()})
    finder.expect(given.get("Trigger") == "deployments", f"{PAGE} makes a stack set without Trigger=deployments")
    finder.expect(told is None, f"restarter.yaml does not take what {PAGE} gives the stack set: {told}")
    for words in re.findall(r"parameters\s*[=:]\s*\{([^}]*)\}", page):
        unknown = sorted(set(re.findall(r"([A-Z]\w+)\s*[=:]", words)) - set(restarter["Parameters"]))
        finder.expect(not unknown, f"{PAGE} gives {unknown}, which restarter.yaml has not, to Terraform or the CDK")
    releases = set(re.findall(r"VERSION=(\d\S*)|restarter-(\d+\.\d+\.\d+)", page))
    finder.expect({"".join(each) for each in releases} == {release.version()}, f"{PAGE} has commands for the releases {sorted(releases)}, Cargo.toml says {release.version()}")


def check_by_checkov(finder, checkov):
    """checkov finds in a template what this excepts, with a reason, and nothing else."""
    sources = {name: template.read((template.ROOT / "examples" / name).read_text()) for name in PARAMETERS}
    judged = check_checkov.judgements(checkov, {(kind, name): each for name, source in sources.items() for kind, each in (("bare", bare(source)), ("excepted", source))})
    for name, source in sources.items():
        found, excepted = set(judged["bare", name][1]), check_checkov.exceptions(finder, source)
        finder.expect(found == excepted, f"checkov finds {sorted(found)} in {name}, which excepts {sorted(excepted)}")
        finder.expect(not judged["excepted", name][1], f"the exceptions of {name} do not reach checkov")


def bare(source):
    """A template without its exceptions."""
    return source | {"Resources": {name: {key: part for key, part in each.items() if key != "Metadata"} for name, each in source["Resources"].items()}}


def main():
    """Checks everything, and shows all problems at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=str(template.ROOT / ".venv/emulator/bin/python"), help="interpreter of the emulator's environment")
    parser.add_argument("--checkov", default=str(template.ROOT / ".venv/checkov/bin/checkov"))
    arguments = parser.parse_args()
    finder = template.Finder()
    with emulator.running(template.tool(arguments.python, emulator.REQUIREMENTS)) as aws:
        asked = check(finder, aws, template.ROOT)
    check_by_checkov(finder, template.tool(arguments.checkov, check_checkov.REQUIREMENTS))
    print(f"examples: {'PROBLEMS' if finder.problems else 'ok'}, {asked} questions about the policies of {len(PARAMETERS)} templates")
    for problem in finder.problems:
        print(f"examples: {problem}", file=sys.stderr)
    sys.exit(1 if finder.problems else 0)


if __name__ == "__main__":
    main()
