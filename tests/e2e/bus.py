#!/usr/bin/env python3
"""From the event bus to the queue: the stack as `sam deploy` makes it, on an emulator of AWS, with the built function.

    tests/e2e/bus_template.py && sam build --config-env emulator
    .ci/release.py target/release-files x86_64=.aws-sam/build/RestartFunction/bootstrap
    .venv/emulator/bin/python tests/e2e/bus.py --sim target/debug/sim

The emulator (ministack; tests/e2e/requirements.txt) is event bus, Lambda, topic, queues, roles and CloudFormation; CodePipeline, CodeDeploy, Auto Scaling, EC2 and
Systems Manager are our own simulated AWS. Events of events/ are put on the bus, and only the queue that subscribes to the stack's topic tells what became of
them; nothing is invoked directly but a dry run and a malformed request at the end of the first case. Each case has an emulator, hosts and a stack of its own:
what `sam deploy --config-env emulator` makes of the template less what bus_template.py lists, then what a second one with other parameters makes of that.
One stack begins with the README's `sam deploy --guided` instead, all of whose questions are expected and answered. Two are made of a release's files by the
README's commands without Rust: one new, and one that was a stack of the first edition (tests/template/first-edition.json) before. The last cases are controls: there something is wrong on
purpose, and the same checks must find it.

What the emulator lets pass and AWS would not is read from the deployed stack instead: whether the rule may invoke the function, and may put what it cannot deliver
into the stack's queue. An event that the bus cannot deliver it drops, so the way from a failing invocation to that queue begins with an asynchronous invocation.

`sam` has to be in the PATH. Only loopback addresses are called, every wait has an end, only processes started here are ended, and the exit status is 1 when
anything failed.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing
import urllib.error
import urllib.request

import boto3
import botocore.config
import botocore.exceptions

import bus_template
import killed
import release
import run
from bus_template import LEFT_OUT, REWRITTEN, source
from run import ACCOUNT, EVENTS, REGION, ROOT, Failure, expect, expect_equal, wait_until

# What `sam build --config-env emulator` leaves, and what .ci/release.py makes.
BUILT = ROOT / ".aws-sam/emulator"
RELEASE = ROOT / "target/release-files"
ZIP = release.zip_name("x86_64")
# In the emulator's S3.
BUCKET = "restarter-releases"
STACK = "codedeploy-agent-restarter"

# Cases at the same time: what takes processors is `sam deploy`.
AT_ONCE = 4
# Seconds until the emulator answers, for one command of SAM or of AWS's command line, and for one call of the emulator.
START_LIMIT = 60
COMMAND_LIMIT = 120
CALL_LIMIT = 60
# Seconds in which an event that starts the function shows itself. The emulator starts it before it answers to PutEvents, and the function calls or ends within one.
QUIET = 10
# Seconds for a whole restart, and from the end of the function until its message is in the queue.
RESTART_LIMIT = 90
MESSAGE_LIMIT = 5
# Seconds for an invocation and its two repetitions, which the emulator makes after one and two.
REPEAT_LIMIT = 30
# Seconds for everything.
RUN_LIMIT = 400
# Events in one PutEvents.
ENTRIES = 10

PIPELINE = ["pipeline-succeeded", "pipeline-succeeded-integers", "pipeline-succeeded-strings", "pipeline-rollback"]
# What starts the function unless the parameter After says otherwise, besides these.
PIPELINE_OTHERWISE = ["pipeline-failed", "pipeline-stopped", "pipeline-superseded"]
# The bus writes its own account into the second one.
DEPLOYMENT = ["codedeploy-success", "codedeploy-other-account"]
DEPLOYMENT_OTHERWISE = ["codedeploy-failure"]
# A rule must let none of these through, whatever the trigger is. The last one is made up below.
NEVER = ["pipeline-started", "action-succeeded", "by-hand", "dry-run", "sqs-record", "sns-record", "another-source"]
# How SAM asks: the question, and in brackets what no answer means. What is answered does not show.
QUESTION = re.compile(r"([^\t\n]+) \[([^\]\n]*)\]: ")
# What SAM says when there is nothing to deploy.
NO_CHANGES = f"No changes to deploy. Stack {STACK} is up to date"
# A topic that is there before the stack.
GIVEN_TOPIC = "given-topic"
# A way out that leads nowhere: SAM would ask which version is its newest.
OFFLINE = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}

# With these two every parameter that shapes the stack is used.
EVERY_OPTION = {
    "Trigger": "deployments",
    "After": "success",
    "CustomerKey": "true",
    "ScheduleExpression": "at(2099-01-01T03:00:00)",
    "ScheduleApplication": "my-application",
    "ScheduleDeploymentGroup": "my-deployment-group",
    "AlertEmail": "somebody@example.com",
    "AlarmTopicArn": f"arn:aws:sns:{REGION}:{ACCOUNT}:{GIVEN_TOPIC}",
    "ExpectEventsWithinDays": "7",
    "InstanceTagValue": "yes",
    "CoveredAccounts": "210987654321",
    "PermissionsBoundaryArn": "arn:aws:iam::aws:policy/PowerUserAccess",
    "LogRetentionDays": "90",
}
ONE_PIPELINE = {
    "PipelineNames": "first-pipeline,my-pipeline",
    "TopicArn": f"arn:aws:sns:{REGION}:{ACCOUNT}:{GIVEN_TOPIC}",
    "TopicKeyArn": f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1f0e9d8c-7b6a-4f5e-8d4c-3b2a1f0e9d8c",
}
# A stack of the first edition in which everything is that holds state, and what may go with an update (tests/template/upgrade.py).
FIRST_EDITION = {
    "CustomerKey": "true",
    "AlertEmail": "somebody@example.com",
    "ScheduleExpression": "at(2099-01-01T03:00:00)",
    "ScheduleApplication": "my-application",
    "ScheduleDeploymentGroup": "my-deployment-group",
}
GONE = ["Schedule"]
# What the README's command without Rust gives besides the code.
README_PARAMETERS = {"AlertEmail": "you@example.com"}
# What a newcomer answers to the questions of `sam deploy --guided` about these parameters; to the others, nothing, which takes the default.
ANSWERS = {"Architecture": "x86_64", "AlertEmail": "somebody@example.com"}


def event(name):
    """An event as an entry of PutEvents. A request is none; it goes into one as its detail, from a source of its own."""
    if name == "another-pipeline":
        entry = event("pipeline-succeeded")
        return {**entry, "Detail": json.dumps({**json.loads(entry["Detail"]), "pipeline": "another-pipeline"})}
    if name == "another-source":
        return {**event("pipeline-succeeded"), "Source": "my.codepipeline"}
    content = json.loads((EVENTS / f"{name}.json").read_text())
    if "detail-type" not in content:
        return {"Source": "my.requests", "DetailType": "Request", "Detail": json.dumps(content)}
    return {"Source": content["source"], "DetailType": content["detail-type"], "Resources": content["resources"], "Detail": json.dumps(content["detail"])}


# ---- what is wrong on purpose ------------------------------------------------------------------------------------------------------------------------------


def mistype_the_state(template):
    """The rule waits for a word that AWS does not say."""
    template["Resources"]["PipelineRule"]["Properties"]["EventPattern"]["detail"]["state"] = ["SUCCEDED"]


def open_the_rule(template):
    """The rule takes another state besides, and may not invoke the function."""
    template["Resources"]["PipelineRule"]["Properties"]["EventPattern"]["detail"]["state"]["Fn::If"][1].append("STARTED")
    del template["Resources"]["PipelineRulePermission"]


def forbid_to_publish(template):
    """The function's role is denied the topic. To take the permission away would not do: the emulator's topics let everybody of their account publish."""
    [policy] = template["Resources"]["FunctionRole"]["Properties"]["Policies"]
    [statement] = [each for each in policy["PolicyDocument"]["Statement"] if each.get("Sid") == "TellTheTopic"]
    statement["Effect"] = "Deny"


def disable_the_rule(bus):
    """As docs/deploy.md has it, for a while without restarts."""
    bus.client("events").disable_rule(Name=bus.rule()["Name"])


def unsubscribe(bus):
    """The queue does not hear of the topic any more."""
    bus.client("sns").unsubscribe(SubscriptionArn=bus.subscription)


NO_RESTART = "no agent was restarted"


class Case(typing.NamedTuple):
    """One stack, and what events do to it."""

    name: str
    # Events that restart, in this order, and events that must reach nobody.
    loud: list[str]
    silent: list[str] = []
    # Whether the first `sam deploy` is the one with questions.
    guided: bool = False
    # Whether the stack is made of what a release holds, and not by SAM; and whether it was one of the first edition before.
    released: bool = False
    upgraded: bool = False
    # Parameters of the second `sam deploy`; none, no second one.
    parameters: dict[str, str] = {}
    # Checks besides.
    more: list[typing.Callable] = []
    # What is wrong on purpose in the template, or is made wrong in the stack.
    plant: typing.Callable | None = None
    spoil: typing.Callable | None = None
    # What the checks must find: nothing, except in a control.
    found: list[str] = []
    # How many times faster than real the simulated hosts are.
    speed: int = run.SPEED


# ---- what is checked ---------------------------------------------------------------------------------------------------------------------------------------


NO_POLICY = '{"Statement": []}'


def allows(policy, service, action, resource, rule):
    """Whether a resource's policy lets the service do that in the name of the rule, and only of this rule."""
    for statement in json.loads(policy)["Statement"]:
        conditions = [value for names in statement.get("Condition", {}).values() for name, value in names.items() if name.lower() == "aws:sourcearn"]
        if (
            statement["Effect"] == "Allow"
            and statement["Principal"] == {"Service": service}
            and statement["Action"] == action
            and statement["Resource"] == resource
            and conditions == [rule["Arn"]]
        ):
            return True
    return False


def check_deployed(bus):
    """What the stack is, where the emulator would not mind. Problems."""
    found = []
    rule = bus.rule()
    function = bus.client("lambda").get_function_configuration(FunctionName=bus.outputs["FunctionName"])
    expect_equal("architecture, runtime", [function["Architectures"], function["Runtime"]], [["x86_64"], "provided.al2023"])
    topic = bus.case.parameters.get("TopicArn", bus.outputs["TopicArn"])
    expect_equal("topic", [bus.outputs["TopicArn"], function["Environment"]["Variables"]["TOPIC_ARN"]], [topic, topic])
    expect_equal("log group", function["LoggingConfig"], {"LogGroup": bus.outputs["LogGroupName"], "LogFormat": "JSON"})
    queue = bus.queue_attributes(bus.outputs["FailedEventsQueueUrl"])
    targets = bus.client("events").list_targets_by_rule(Rule=rule["Name"])["Targets"]
    expect_equal("targets", [[each["Arn"], each.get("DeadLetterConfig")] for each in targets], [[function["FunctionArn"], {"Arn": queue["QueueArn"]}]])
    try:
        policy = bus.client("lambda").get_policy(FunctionName=function["FunctionName"])["Policy"]
    except botocore.exceptions.ClientError:
        policy = NO_POLICY
    if not allows(policy, "events.amazonaws.com", "lambda:InvokeFunction", function["FunctionArn"], rule):
        found.append("the rule may not invoke the function")
    if not allows(queue.get("Policy", NO_POLICY), "events.amazonaws.com", "sqs:SendMessage", queue["QueueArn"], rule):
        found.append("the rule may not put into the queue of failed events")
    asynchronous = bus.client("lambda").get_function_event_invoke_config(FunctionName=function["FunctionName"], Qualifier="$LATEST")
    wanted = [2, {"Destination": queue["QueueArn"]}]
    expect_equal("repetitions and destination", [asynchronous["MaximumRetryAttempts"], asynchronous["DestinationConfig"]["OnFailure"]], wanted)
    return found


def check_message(bus, message, name, first):
    """The queue's message is the function's report."""
    envelope = json.loads(message["Body"])
    expect_equal("topic", [envelope["Type"], envelope["TopicArn"]], ["Notification", bus.outputs["TopicArn"]])
    body = json.loads(envelope["Message"])
    kind = "deployment" if name in DEPLOYMENT + DEPLOYMENT_OTHERWISE else "pipeline"
    group = run.check_report(body, "attention", kind, {"restarted" if first else "already-restarted": 3, "failed": 1, "skipped": 1, "unreachable": 1})
    run.check_attention(group)
    expect_equal("severity and notified", [body["severity"], body["notified"]], ["warning", True])
    detail = json.loads(event(name)["Detail"])
    for field, there in (("pipeline", "pipeline"), ("executionId", "execution-id"), ("deploymentId", "deploymentId")):
        expect_equal(field, body["trigger"].get(field), detail.get(there))
    attributes = {name: run.attribute({"attributes": envelope["MessageAttributes"]}, name) for name in envelope["MessageAttributes"]}
    place = {"account": body["trigger"]["account"], "region": body["trigger"]["region"]}
    wanted = {"result": "attention", "severity": "warning", **place, "application": "my-application", "deploymentGroup": "my-deployment-group"}
    expect_equal("attributes", attributes, {**wanted, "pipeline": "my-pipeline"} if kind == "pipeline" else wanted)
    return ", ".join(f"{count} {outcome}" for outcome, count in group["counts"].items())


def check_hosts(state):
    """Each healthy host was restarted once, however many events there were. Problems."""
    times = killed.restarts(state)
    expect_equal("messages to the topic of the simulated AWS", state["messages"], [])
    if not any(times.values()):
        return [NO_RESTART]
    expect_equal("restarts", times, killed.RESTARTS)
    return []


def check_differences(bus):
    """What bus_template.py leaves out is still refused, and what it rewrites is still taken for something else."""
    for resource, left_out in LEFT_OUT.items():
        kind = source.read(source.TEMPLATE.read_text())["Resources"][resource]["Type"]
        alone = json.dumps({"Resources": {resource: {"Type": kind, "Properties": {}}}})
        try:
            bus.client("cloudformation").create_change_set(StackName="left-out", ChangeSetName="create", ChangeSetType="CREATE", TemplateBody=alone)
        except botocore.exceptions.ClientError as refused:
            expect(left_out.refusal in str(refused), f"{resource} is refused otherwise: {refused}")
            continue
        raise Failure(f"the emulator takes {kind}: there is no reason to leave {resource} out")
    conditions = source.read(source.TEMPLATE.read_text())["Conditions"]
    alone = {
        "Parameters": {"PipelineNames": {"Type": "CommaDelimitedList", "Default": ""}},
        "Conditions": {condition: conditions[condition] for condition in REWRITTEN},
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {condition: {"Value": {"Fn::If": [condition, "true", "false"]}} for condition in REWRITTEN},
    }
    cloudformation = bus.client("cloudformation")
    cloudformation.create_stack(StackName="conditions", TemplateBody=json.dumps(alone))
    wait_until("a small stack", START_LIMIT, lambda: cloudformation.describe_stacks(StackName="conditions")["Stacks"][0]["StackStatus"] == "CREATE_COMPLETE")
    for condition in cloudformation.describe_stacks(StackName="conditions")["Stacks"][0]["Outputs"]:
        expect_equal(f"{condition['OutputKey']} with an empty list, which the emulator gets wrong", condition["OutputValue"], "false")
    cloudformation.delete_stack(StackName="conditions")
    return "bus_template.py lists what the emulator cannot take, and no more"


def check_dry_run(bus):
    """The first thing that somebody does with a new stack."""
    before = bus.seen()
    answer = bus.client("lambda").invoke(FunctionName=bus.outputs["FunctionName"], Payload=(EVENTS / "dry-run.json").read_bytes())
    plan = json.loads(answer["Payload"].read())
    expect_equal("result of a dry run", [plan["result"], plan["notified"], len(plan["groups"][0]["plan"])], ["dry-run", False, 6])
    after = bus.seen()
    expect_equal("invocations", after.ended - before.ended, 1)
    expect_equal("messages", bus.messages(bus.queue), [])
    return "dry run: a plan for 6"


def check_failed_events(bus):
    """A request that cannot be understood fails; it is repeated twice, and then kept."""
    before = bus.seen()
    request = {"application": "my-application"}
    bus.client("lambda").invoke(FunctionName=bus.outputs["FunctionName"], InvocationType="Event", Payload=json.dumps(request))
    wait_until("three invocations", REPEAT_LIMIT, lambda: bus.seen().ended - before.ended >= 3)
    failures = []
    wait_until("a failed event", MESSAGE_LIMIT, lambda: failures.extend(bus.messages(bus.outputs["FailedEventsQueueUrl"])) or failures)
    expect_equal("failed events", [json.loads(each["Body"])["requestPayload"] for each in failures], [request])
    reason = json.loads(failures[0]["Body"])["responsePayload"]["errorMessage"]
    expect("deploymentGroup" in reason, f"the failed event's reason is {reason!r}")
    expect_equal("invocations and calls", [bus.seen().ended - before.ended, bus.seen().calls], [3, before.calls])
    return "a malformed request: 3 invocations, then in FailedEvents"


def check_every_option(bus):
    """Whatever the template has is there, but for the other trigger's rule."""
    there = set(bus.resources())
    wanted = {*source.read(source.TEMPLATE.read_text())["Resources"]} - {*LEFT_OUT, "PipelineRule", "PipelineRulePermission"}
    expect_equal("resources", sorted(there), sorted(wanted))
    return f"{len(there)} resources"


def check_delete(bus):
    """`sam delete` leaves nothing."""
    bus.sam("delete", "delete", "--stack-name", STACK, "--region", REGION, "--no-prompts")
    for service, operation, field in (
        ("events", "list_rules", "Rules"),
        ("lambda", "list_functions", "Functions"),
        ("cloudwatch", "describe_alarms", "MetricAlarms"),
        ("iam", "list_roles", "Roles"),
        ("logs", "describe_log_groups", "logGroups"),
    ):
        left = getattr(bus.client(service), operation)()[field]
        expect_equal(f"{service} after sam delete", len(left), 0)
    queues = bus.client("sqs").list_queues().get("QueueUrls", [])
    expect_equal("queues after sam delete", [url.rsplit("/", 1)[-1] for url in queues], ["messages"])
    topics = bus.client("sns").list_topics()["Topics"]
    expect_equal("topics after sam delete", [each["TopicArn"].rsplit(":", 1)[-1] for each in topics], [GIVEN_TOPIC])
    return "deleted without a trace"


CASES = [
    Case("pipelines", [*PIPELINE, *PIPELINE_OTHERWISE], [*NEVER, *DEPLOYMENT, *DEPLOYMENT_OTHERWISE], more=[check_differences, check_dry_run, check_failed_events, check_delete]),
    Case(
        "deployments, and every option",
        DEPLOYMENT,
        [*NEVER, *DEPLOYMENT_OTHERWISE, *PIPELINE, *PIPELINE_OTHERWISE],
        guided=True,
        parameters=EVERY_OPTION,
        more=[check_every_option],
    ),
    Case("one pipeline, and a topic of one's own", PIPELINE[:1], ["another-pipeline", *NEVER, *DEPLOYMENT], parameters=ONE_PIPELINE),
    Case("a release's files, without SAM", PIPELINE[:1], ["pipeline-started"], released=True),
    Case("a stack of the first edition, updated", PIPELINE[:1], released=True, upgraded=True, parameters=FIRST_EDITION),
    Case("control: the rule is disabled", PIPELINE[:1], spoil=disable_the_rule, found=["pipeline-succeeded started nothing", NO_RESTART]),
    Case("control: a typo in the rule's pattern", PIPELINE[:1], plant=mistype_the_state, found=["pipeline-succeeded started nothing", NO_RESTART]),
    Case(
        "control: a rule for beginnings too, without permission",
        [],
        ["pipeline-started"],
        plant=open_the_rule,
        found=["the rule may not invoke the function", "events that must reach nobody started the function"],
    ),
    Case("control: the queue is not subscribed", PIPELINE[:1], spoil=unsubscribe, found=["pipeline-succeeded: no message"]),
    Case("control: the role is denied the topic", PIPELINE[:1], plant=forbid_to_publish, found=["pipeline-succeeded: no message"]),
]


# ---- the stage ---------------------------------------------------------------------------------------------------------------------------------------------


class Seen(typing.NamedTuple):
    """What the function has done so far."""

    # Invocations that ended, by the function's log group.
    ended: int
    # Calls to the simulated AWS.
    calls: int


class Bus(killed.Stage):
    """A simulated AWS, an emulator that passes its own calls on to it, and the deployed stack."""

    def __init__(self, case, arguments, processes, logs):
        super().__init__(case, arguments, processes, logs)
        self.endpoint = None
        self.clients = {}
        self.outputs = {}
        # What is worth a word about the way it was deployed.
        self.deployed = []
        self.queue = None
        self.subscription = None

    def world(self):
        """The world of run.py as it is."""
        return json.loads(run.WORLD.read_text())

    def open(self):
        """Starts both, deploys the stack, and subscribes a queue to its topic."""
        super().open()
        self.emulate()
        self.client("sns").create_topic(Name=GIVEN_TOPIC)
        self.deploy()
        self.subscribe()
        if self.case.spoil:
            self.case.spoil(self)

    def emulate(self):
        """Starts the emulator."""
        port = run.free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        simulated = {f"AWS_ENDPOINT_URL_{service}": f"http://{self.address}" for service in ("CODEPIPELINE", "CODEDEPLOY", "AUTO_SCALING", "EC2", "SSM")}
        environment = run.clean_environment(
            BIND_HOST="127.0.0.1",
            MINISTACK_HOST="127.0.0.1",
            GATEWAY_PORT=str(port),
            MINISTACK_ACCOUNT_ID=ACCOUNT,
            # The policies of roles, topics and queues count.
            AUTH="true",
            # It would listen on another port, for everybody.
            IOT_MTLS_ENABLED="0",
            TMPDIR=str(self.logs),
            # The function's process gets these too.
            AWS_ENDPOINT_URL=self.endpoint,
            **simulated,
            **OFFLINE,
        )
        emulator = self.processes.start("emulator", [sys.executable, str(ROOT / "tests/e2e/bus_emulator.py")], environment, self.logs)
        wait_until("the emulator", START_LIMIT, lambda: emulator.alive() and self.healthy())

    def healthy(self):
        """Whether the emulator answers."""
        try:
            with urllib.request.urlopen(f"{self.endpoint}/_ministack/health", timeout=CALL_LIMIT):
                return True
        except (urllib.error.URLError, ConnectionError):
            return False

    def client(self, service):
        """A client of the emulator."""
        if service not in self.clients:
            config = botocore.config.Config(connect_timeout=CALL_LIMIT, read_timeout=CALL_LIMIT, retries={"total_max_attempts": 1}, proxies={})
            session = boto3.session.Session(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="example", region_name=REGION)
            self.clients[service] = session.client(service, endpoint_url=self.endpoint, config=config)
        return self.clients[service]

    def deploy(self):
        """The README's second command, with its questions or in samconfig.toml's environment for the emulator; then once more with the case's parameters."""
        template = []
        if self.case.plant:
            planted = bus_template.emulated(BUILT / "RestartFunction", self.logs)
            self.case.plant(planted)
            bus_template.write(planted, self.logs / "planted.yaml")
            # SAM would look for its settings beside the template.
            template = ["--config-file", str(ROOT / "samconfig.toml"), "--template-file", str(self.logs / "planted.yaml")]
        if self.case.released:
            self.deploy_released()
        elif self.case.guided:
            self.deploy_guided()
        else:
            self.sam("deploy", "deploy", "--config-env", "emulator", *template)
        if self.case.parameters and not self.case.released:
            parameters = {"Architecture": "x86_64", **self.case.parameters}
            self.sam("update", "deploy", "--config-env", "emulator", *template, "--parameter-overrides", *(f'{key}="{value}"' for key, value in parameters.items()))
        [stack] = self.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
        self.outputs = {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}

    def deploy_released(self):
        """What README and docs/deploy.md say without Rust, to the letter but for bucket and processor, with the template for the emulator; or the first edition's stack, and then its upgrade."""
        folder = self.logs / "release"
        folder.mkdir()
        shutil.copy(RELEASE / ZIP, folder)
        bus_template.write(bus_template.adapted(source.read((RELEASE / "restarter.yaml").read_text())), folder / "restarter.yaml")
        self.client("s3").create_bucket(Bucket=BUCKET)
        [commands] = re.findall(r"^```sh\n(aws s3 cp .*?)\n```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
        expect(commands in (ROOT / "docs/deploy.md").read_text(), f"docs/deploy.md has other commands than the README's {commands!r}")
        commands = commands.replace("BUCKET", BUCKET).replace("arm64", "x86_64")
        before = {}
        if self.case.upgraded:
            first = bus_template.adapted(json.loads((ROOT / "tests/template/first-edition.json").read_text()))
            first["Resources"]["RestartFunction"]["Properties"]["Code"] = {"S3Bucket": BUCKET, "S3Key": ZIP}
            bus_template.write(first, folder / "first-edition.yaml")
            upload, deploy = commands.split("\n", 1)
            deploy, _ = deploy.replace("restarter.yaml", "first-edition.yaml").split("--parameter-overrides")
            parameters = {"Architecture": "x86_64", **self.case.parameters}
            self.typed("first", folder, f"{upload}\n{deploy} --parameter-overrides {shlex.join(f'{key}={value}' for key, value in parameters.items())}")
            before = self.resources()
            # The other parameters stay.
            commands = commands.replace(f" AlertEmail={README_PARAMETERS['AlertEmail']}", "")
        else:
            commands += " Architecture=x86_64"
        self.typed("released", folder, commands)
        after = self.resources()
        expect_equal("resources that went", sorted(set(before) - set(after)), GONE if before else [])
        expect_equal("resources that were replaced", [name for name, there in before.items() if after.get(name, there) != there], [])
        [stack] = self.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
        told = {each["ParameterKey"]: each["ParameterValue"] for each in stack["Parameters"]}
        wanted = {"Architecture": "x86_64", "CodeBucket": BUCKET, "CodeKey": ZIP, **(self.case.parameters or README_PARAMETERS)}
        expect_equal("parameters", {key: told[key] for key in wanted}, wanted)
        self.deployed = [f"updated: {len(before) - len(GONE)} resources as they were, {len(after) - len(before) + len(GONE)} new" if before else f"of {ZIP}"]

    def typed(self, name, folder, commands):
        """Commands of the AWS command line that somebody without Rust types, in a folder; all must succeed."""
        path = f"{ROOT / '.venv/conformance/bin'}:/usr/bin:/bin"
        environment = run.clean_environment(AWS_ENDPOINT_URL=self.endpoint, PATH=path, HOME=str(folder), **OFFLINE)
        self.over(f"aws-{name}", ["bash", "-ec", f"cd {shlex.quote(str(folder))}\n{commands}"], environment)

    def resources(self):
        """The stack's resources, each by its logical name with its physical one."""
        pages = self.client("cloudformation").get_paginator("list_stack_resources").paginate(StackName=STACK)
        return {each["LogicalResourceId"]: each["PhysicalResourceId"] for page in pages for each in page["StackResourceSummaries"]}

    def deploy_guided(self):
        """The README's second command with its questions, and what docs/deploy.md says of the next one: the parameters stay as they are."""
        settings = self.logs / "samconfig.toml"
        shutil.copy(ROOT / "samconfig.toml", settings)
        files = ["--config-file", str(settings), "--template-file", str(BUILT / "template.yaml")]
        parameters = source.read(source.TEMPLATE.read_text())["Parameters"]
        answers = {
            "Stack Name": STACK,
            "AWS Region": REGION,
            **{f"Parameter {name}": ANSWERS.get(name, "") for name in parameters},
            "Confirm changes before deploy": "y",
            "Allow SAM CLI IAM role creation": "y",
            "Disable rollback": "",
            "Save arguments to configuration file": "y",
            "SAM configuration file": "",
            "SAM configuration environment": "",
            "Deploy this changeset?": "y",
        }
        asked = QUESTION.findall(self.sam("guided", "deploy", "--guided", *files, answers=answers.values()))
        # An answer to another question than it was meant for would show here.
        expect_equal("questions of sam deploy --guided", [question for question, _ in asked], list(answers))
        suggested = {f"Parameter {name}": str(each["Default"]) for name, each in parameters.items()}
        expect_equal("suggestions", {question: default for question, default in asked if question in suggested}, suggested)
        self.check_answered(parameters)
        told = self.sam("again", "deploy", "--no-fail-on-empty-changeset", *files)
        expect(NO_CHANGES in told, f"sam deploy after sam deploy --guided does not say {NO_CHANGES!r}")
        self.check_answered(parameters)
        self.deployed = [f"guided: {len(asked)} questions, {len(parameters)} of them parameters; sam deploy then has nothing to change"]

    def check_answered(self, parameters):
        """The stack is new and whole, and has the parameters that were answered."""
        [stack] = self.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"]
        expect_equal("state of the stack", stack["StackStatus"], "CREATE_COMPLETE")
        wanted = {name: ANSWERS.get(name, str(each["Default"])) for name, each in parameters.items()}
        expect_equal("parameters of the stack", {each["ParameterKey"]: each["ParameterValue"] for each in stack["Parameters"]}, wanted)

    def sam(self, name, *arguments, answers=()):
        """One command of SAM, which must succeed; what it said."""
        environment = run.clean_environment(AWS_ENDPOINT_URL=self.endpoint, SAM_CLI_TELEMETRY="0", SAM_CLI_POLL_DELAY="1", TMPDIR=str(self.logs), **OFFLINE)
        # A process that is started here has nothing to read; the shell gives it the answers.
        answered = self.logs / f"sam-{name}.answers"
        answered.write_text("".join(f"{answer}\n" for answer in answers))
        return self.over(f"sam-{name}", ["sh", "-c", 'exec sam "$@" <"$0"', str(answered), *arguments], environment)

    def over(self, name, arguments, environment):
        """Waits for the end of a command, which must be a good one; what it said."""
        command = self.processes.start(name, arguments, environment, self.logs)
        try:
            code = command.child.wait(COMMAND_LIMIT)
        except subprocess.TimeoutExpired as late:
            raise Failure(f"{name}: not over within {COMMAND_LIMIT} s") from late
        expect(code == 0, f"{name} ended with {code}")
        return command.log.read_text()

    def subscribe(self):
        """A queue that holds what the topic tells; it lets nobody else put into it."""
        sqs = self.client("sqs")
        self.queue = sqs.create_queue(QueueName="messages")["QueueUrl"]
        queue = self.queue_attributes(self.queue)["QueueArn"]
        statement = {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage", "Resource": queue}
        statement["Condition"] = {"ArnEquals": {"aws:SourceArn": self.outputs["TopicArn"]}}
        sqs.set_queue_attributes(QueueUrl=self.queue, Attributes={"Policy": json.dumps({"Version": "2012-10-17", "Statement": [statement]})})
        subscription = self.client("sns").subscribe(TopicArn=self.outputs["TopicArn"], Protocol="sqs", Endpoint=queue, ReturnSubscriptionArn=True)
        self.subscription = subscription["SubscriptionArn"]

    def queue_attributes(self, url):
        """All attributes of a queue."""
        return self.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]

    def rule(self):
        """The stack's only rule."""
        rules = self.client("events").list_rules()["Rules"]
        expect_equal("rules", len(rules), 1)
        return rules[0]

    def seen(self):
        """What the function has done so far."""
        pages = self.client("logs").get_paginator("filter_log_events").paginate(logGroupName=self.outputs["LogGroupName"])
        lines = [each["message"] for page in pages for each in page["events"]]
        return Seen(sum(line.startswith("END RequestId: ") for line in lines), len(self.state()["calls"]))

    def messages(self, queue):
        """Takes everything out of a queue."""
        messages = []
        while taken := self.client("sqs").receive_message(QueueUrl=queue, MaxNumberOfMessages=10, MessageAttributeNames=["All"]).get("Messages"):
            messages += taken
            for each in taken:
                self.client("sqs").delete_message(QueueUrl=queue, ReceiptHandle=each["ReceiptHandle"])
        return messages

    def put(self, names):
        """Puts events on the account's bus."""
        for first in range(0, len(names), ENTRIES):
            answer = self.client("events").put_events(Entries=[event(name) for name in names[first : first + ENTRIES]])
            expect_equal("refused events", answer["FailedEntryCount"], 0)

    def starts(self, before):
        """Whether the function has been started since; waits as long as that can take to be seen."""
        end = time.monotonic() + QUIET
        while self.seen() == before:
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True

    def loud(self, name, first):
        """An event that restarts: one invocation, one message. What was seen, and problems."""
        before = self.seen()
        self.put([name])
        if not self.starts(before):
            return f"{name}: nothing", [f"{name} started nothing"]
        wait_until(f"the end of what {name} started", RESTART_LIMIT, lambda: self.seen().ended > before.ended)
        messages = []
        end = time.monotonic() + MESSAGE_LIMIT
        while not messages and time.monotonic() < end:
            messages += self.messages(self.queue)
            time.sleep(0.1)
        expect_equal(f"{name}: invocations", self.seen().ended - before.ended, 1)
        if not messages:
            return f"{name}: no message", [f"{name}: no message"]
        expect_equal(f"{name}: messages", len(messages), 1)
        return f"{name}: {check_message(self, messages[0], name, first)}", []

    def silent(self, names):
        """Events that must reach nobody. Problems."""
        before = self.seen()
        self.put(names)
        found = ["events that must reach nobody started the function"] if self.starts(before) else []
        expect_equal("messages about events that must reach nobody", self.messages(self.queue), [])
        return found

    def play(self):
        """The case; what was seen in it."""
        began = time.monotonic()
        self.open()
        seen = [f"deployed within {time.monotonic() - began:.0f} s", *self.deployed]
        found = check_deployed(self)
        for number, name in enumerate(self.case.loud):
            line, problems = self.loud(name, number == 0)
            seen.append(line)
            found += problems
        if self.case.silent:
            problems = self.silent(self.case.silent)
            seen += [] if problems else [f"nobody hears of {', '.join(self.case.silent)}"]
            found += problems
        if self.case.loud:
            state = self.state()
            seen.append(" ".join(["restarts", *(f"{instance[-4:]}:{times}" for instance, times in killed.restarts(state).items())]))
            found += check_hosts(state)
        seen += [check(self) for check in self.case.more]
        if self.case.found:
            seen.append(f"found: {'; '.join(found)}")
        expect_equal("problems", found, self.case.found)
        return seen


def check_built():
    """Fails unless what was built is of the present template."""
    again = "run tests/e2e/bus_template.py and sam build --config-env emulator"
    path = BUILT / "template.yaml"
    expect(path.exists() and (BUILT / "RestartFunction/bootstrap").exists(), f"{BUILT} is not there: {again}")
    built, wanted = source.read(path.read_text()), bus_template.emulated(BUILT / "RestartFunction", BUILT)
    for section in ("Parameters", "Rules", "Conditions", "Outputs"):
        expect(built[section] == wanted[section], f"{path}: {section} are not those of template.yaml: {again}")
    expect((RELEASE / ZIP).exists(), f"{RELEASE} is not there: run .ci/release.py")
    expect((RELEASE / "restarter.yaml").read_text() == release.restarter(source.TEMPLATE.read_text()), f"{RELEASE} is not of template.yaml: run .ci/release.py")
    properties = [{name: each.get("Properties") for name, each in template["Resources"].items()} for template in (built, wanted)]
    expect(properties[0] == properties[1], f"{path}: resources are not those of template.yaml: {again}")


def check_events():
    """Fails unless both triggers are tried with every file of events/."""
    files = {path.stem for path in EVENTS.glob("*.json")}
    for case in CASES[:2]:
        expect_equal(f"events of {case.name}", sorted({*case.loud, *case.silent} & files), sorted(files))


def played(case, arguments, processes, logs):
    """Plays one case; whether it passed, and its line."""
    logs.mkdir()
    lines, passed = {}, []
    killed.told(Bus(case, arguments, processes, logs), lines, passed)
    return bool(passed), lines[case.name]


def main():
    """Plays all cases, some side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sim", default="target/debug/sim", help="the simulated AWS")
    parser.add_argument("--only", help="cases whose name holds this text")
    arguments = parser.parse_args()
    arguments.sim = str((ROOT / arguments.sim).resolve())
    # What was started here is ended in any case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    try:
        check_built()
        check_events()
    except Failure as failure:
        sys.exit(f"FAILED {failure}")
    cases = [case for case in CASES if not arguments.only or arguments.only in case.name]
    passed = 0
    processes = killed.Processes()
    with tempfile.TemporaryDirectory(prefix="bus-", ignore_cleanup_errors=True) as folder:
        pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
        try:
            playing = {case.name: pool.submit(played, case, arguments, processes, pathlib.Path(folder) / str(number)) for number, case in enumerate(cases)}
            for name, future in playing.items():
                try:
                    good, line = future.result(max(0, began + RUN_LIMIT - time.monotonic()))
                    passed += good
                except concurrent.futures.TimeoutError:
                    line = f"FAILED {name}: not over within {RUN_LIMIT} s"
                print(line, flush=True)
        finally:
            processes.end()
            pool.shutdown(cancel_futures=True)
    print(f"{passed} of {len(cases)} cases passed, {time.monotonic() - began:.0f} s")
    sys.exit(passed != len(cases))


if __name__ == "__main__":
    main()
