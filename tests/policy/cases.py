"""What each stack must allow, and the neighbours of each: the same request with one field changed, which it must refuse.

Three kinds of requests are allowed: those that the stories make, those that AWS services make in a role's name, and those that AWS services make in their own.
"""

import re
from dataclasses import dataclass, replace

from calls import ACCOUNT, Call, Unreadable
from granted import (
    DEPLOYMENT_RULE,
    FUNCTION,
    FUNCTION_ROLE,
    KEY,
    LOG_GROUP,
    PIPELINE,
    PIPELINE_RULE,
    QUEUE,
    REGION,
    SCHEDULE_ROLE,
    TOPIC,
)

ELSEWHERE = "999999999999"
TAG = "ssm:resourceTag/AgentRestart"
TAG_VALUE = "After-deployment"
GIVEN_KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/66666666-7777-8888-9999-000000000000"
# What the owner of a key that is given must have written into its policy: that the account's roles may use it as their own policies say.
GIVEN_KEYS_POLICY = {
    "Version": "2012-10-17",
    "Statement": [{"Sid": "Account", "Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}, "Action": "kms:*", "Resource": "*"}],
}

PRINCIPALS = {"FunctionRole": FUNCTION_ROLE, "ScheduleRole": SCHEDULE_ROLE}


@dataclass(frozen=True)
class Stack:
    """A set of parameters under a name."""

    name: str
    parameters: dict

    def has(self, parameter):
        """Whether a parameter is given."""
        return parameter in self.parameters

    @property
    def on_pipelines(self):
        """Whether pipelines start the function."""
        return self.parameters.get("Trigger") != "deployments"


OTHER_LISTED = "another.one_2@prod"
LISTED = {"PipelineNames": f"{PIPELINE},{OTHER_LISTED}"}
TAGGED = {"InstanceTagValue": TAG_VALUE}
GIVEN_TOPIC = {"TopicArn": TOPIC}
SCHEDULE = {"ScheduleExpression": "rate(7 days)", "ScheduleApplication": "my-application", "ScheduleDeploymentGroup": "my-deployment-group"}
STACKS = [
    Stack("all pipelines", {}),
    Stack("listed pipelines", LISTED),
    Stack("deployments", {"Trigger": "deployments"}),
    Stack("tagged instances", TAGGED),
    Stack("given topic", GIVEN_TOPIC),
    Stack("given topic with a key", GIVEN_TOPIC | {"TopicKeyArn": GIVEN_KEY}),
    Stack("own key", {"CustomerKey": "true"}),
    Stack("schedule", SCHEDULE),
    Stack("everything on pipelines", LISTED | TAGGED | SCHEDULE | {"CustomerKey": "true"}),
    Stack("everything on deployments", {"Trigger": "deployments", "CustomerKey": "true", "TopicKeyArn": GIVEN_KEY} | GIVEN_TOPIC | TAGGED | SCHEDULE),
]


@dataclass(frozen=True)
class Request:
    """One question to IAM: may this principal do that to this resource, under these circumstances?"""

    principal: str
    action: str
    resource: str
    context: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Neighbour:
    """A request that differs from an allowed one in one field; in two, where one cannot change without the other."""

    field: str
    value: str
    request: Request


@dataclass(frozen=True)
class Case:
    """Requests that a policy must allow together, and their neighbours, each of which it must refuse."""

    # The role or the policy that decides.
    subject: str
    action: str
    # Why the role needs the action, where no story makes the call.
    reason: str
    requests: tuple[Request, ...]
    neighbours: tuple[Neighbour, ...]


# ---- one field changed -----------------------------------------------------------------------------------------------


def resource(field, shown, pattern, replacement):
    """Another resource: the pattern is replaced in the one that holds it."""

    def change(requests):
        request = first(requests, pattern)
        return Neighbour(field, shown, replace(request, resource=re.sub(pattern, replacement, request.resource, count=1)))

    return change


def longer(field, pattern):
    """The resource whose name begins with the whole of the allowed one's."""
    return resource(field, "the same name with -2 behind it", f"({pattern})", r"\1-2")


def action(name, on=".*", instead=None):
    """Another action, on the resource that matches; or on another one too, where the action knows no such resource."""

    def change(requests):
        request = first(requests, on)
        # A service's own circumstances mean nothing to another service.
        context = request.context if name.split(":")[0] == request.action.split(":")[0] and instead is None else ()
        return Neighbour("action and resource" if instead else "action", name, replace(request, action=name, resource=instead or request.resource, context=context))

    return change


def circumstance(field, key, shown, *others):
    """Another context: this key with other pairs instead, or without."""

    def change(requests):
        request = next(request for request in requests if any(name == key for name, _ in request.context))
        kept = tuple(pair for pair in request.context if pair[0] != key)
        return Neighbour(field, shown, replace(request, context=kept + others))

    return change


def principal(name):
    """Another principal."""

    def change(requests):
        return Neighbour("principal", name, replace(requests[0], principal=name))

    return change


def first(requests, pattern):
    """The first of the requests whose resource holds the pattern."""
    for request in requests:
        if re.search(pattern, request.resource):
            return request
    raise Unreadable(f"no resource of {requests} holds {pattern}: mend its neighbours in tests/policy/cases.py")


def neighbours(requests, changes):
    """The neighbours by these changes. One that changes nothing would prove nothing."""
    found = tuple(change(requests) for change in changes)
    for neighbour in found:
        if neighbour.request in requests:
            raise ValueError(f"the neighbour {neighbour} is the allowed request itself")
    return found


AUTO_SCALING_GROUP = f"arn:aws:autoscaling:{REGION}:{ACCOUNT}:autoScalingGroup:11111111-2222-3333-4444-555555555555:autoScalingGroupName/web"
INSTANCE = f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-00000000000000009"

# The neighbours of the calls that the stories make.
CHANGES = {
    "ssm:SendCommand": [
        resource("document", "another one of this account", r"document/.*", "document/another-document"),
        longer("document", r"document/.*"),
        resource("document", "AWS-RunShellScript, which AWS owns", rf":{ACCOUNT}:document/.*", "::document/AWS-RunShellScript"),
        resource("document's account", ELSEWHERE, rf":{ACCOUNT}:document", f":{ELSEWHERE}:document"),
        action("ssm:UpdateDocument", on=":document/"),
        action("ssm:ModifyDocumentPermission", on=":document/"),
        action("ssm:DeleteDocument", on=":document/"),
        action("iam:PassRole", instead=FUNCTION_ROLE),
    ],
    "ssm:DescribeInstanceInformation": [
        action("ssm:GetParameter", instead=f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/secret"),
        action("ssm:DescribeSessions"),
    ],
    "ssm:ListCommandInvocations": [action("ssm:ListCommands"), action("ssm:CancelCommand")],
    "sns:Publish": [
        resource("topic", "another one of this account", r"[^:]+$", "another-topic"),
        longer("topic", r"[^:]+$"),
        resource("topic's account", ELSEWHERE, rf":{ACCOUNT}:", f":{ELSEWHERE}:"),
        resource("topic's region", "eu-central-1", rf":{REGION}:", ":eu-central-1:"),
        action("sns:Subscribe"),
        action("sns:SetTopicAttributes"),
        action("sns:DeleteTopic"),
    ],
    "codepipeline:ListActionExecutions": [
        resource("pipeline's region", "eu-central-1", r":codepipeline:[^:]+", ":codepipeline:eu-central-1"),
        resource("pipeline's account", ELSEWHERE, rf":{ACCOUNT}:", f":{ELSEWHERE}:"),
        action("codepipeline:StartPipelineExecution"),
        action("codepipeline:UpdatePipeline"),
        action("codepipeline:GetPipeline"),
    ],
    "autoscaling:DescribeAutoScalingGroups": [
        action("autoscaling:DescribePolicies"),
        action("autoscaling:DescribeTags"),
        action("autoscaling:TerminateInstanceInAutoScalingGroup", instead=AUTO_SCALING_GROUP),
        action("autoscaling:UpdateAutoScalingGroup", instead=AUTO_SCALING_GROUP),
    ],
    "autoscaling:DescribeAutoScalingInstances": [
        action("autoscaling:DescribeLaunchConfigurations"),
        action("autoscaling:DescribeScalingActivities"),
        action("autoscaling:DetachInstances", instead=AUTO_SCALING_GROUP),
        action("autoscaling:CompleteLifecycleAction", instead=AUTO_SCALING_GROUP),
    ],
    "ec2:DescribeInstances": [
        action("ec2:DescribeTags"),
        action("ec2:DescribeVolumes"),
        action("ec2:TerminateInstances", instead=INSTANCE),
        action("ec2:StopInstances", instead=INSTANCE),
        action("ec2:RebootInstances", instead=INSTANCE),
    ],
    "codedeploy:ListDeploymentTargets": [action("codedeploy:StopDeployment"), action("codedeploy:ContinueDeployment")],
} | dict.fromkeys(
    ["codedeploy:BatchGetDeployments", "codedeploy:GetDeployment", "codedeploy:GetDeploymentGroup", "codedeploy:ListDeployments"],
    [
        resource("deployment group's account", ELSEWHERE, rf":{ACCOUNT}:", f":{ELSEWHERE}:"),
        action("codedeploy:CreateDeployment"),
        action("codedeploy:UpdateDeploymentGroup"),
        action("codedeploy:DeleteDeploymentGroup"),
    ],
)
# Those of a command, by the kinds of nodes that it goes to.
NODE_CHANGES = {
    ":instance/": [
        resource("instance's account", ELSEWHERE, rf":{ACCOUNT}:instance", f":{ELSEWHERE}:instance"),
        action("ssm:StartSession", on=":instance/"),
        action("ec2:RebootInstances", on=":instance/"),
        action("ec2:TerminateInstances", on=":instance/"),
    ],
    ":managed-instance/": [
        resource("machine's account", ELSEWHERE, rf":{ACCOUNT}:managed-instance", f":{ELSEWHERE}:managed-instance"),
        action("ssm:StartSession", on=":managed-instance/"),
        action("ssm:DeregisterManagedInstance", on=":managed-instance/"),
        action("ssm:UpdateManagedInstanceRole", on=":managed-instance/"),
    ],
}
OTHER_PIPELINES = [resource("pipeline", "another one of this account", r"[^:]+$", "another-pipeline"), longer("pipeline", r"[^:]+$")]
OTHER_TAGS = [
    circumstance("instance's tag AgentRestart", TAG, "none"),
    circumstance("instance's tag AgentRestart", TAG, "another value", (TAG, "never")),
    circumstance("instance's tag AgentRestart", TAG, "the value in small letters", (TAG, TAG_VALUE.lower())),
    circumstance("instance's tag AgentRestart", TAG, "the value on another tag", ("ssm:resourceTag/Owner", TAG_VALUE)),
]


def made_by_the_stories(stack, calls):
    """The stories' calls in this stack. Pipelines are read by none that only deployments start."""
    for call in calls:
        requests = tuple(Request(FUNCTION_ROLE, call.action, name, tags_of(stack, name)) for name in call.resources)
        if call.action == "codepipeline:ListActionExecutions" and not stack.on_pipelines:
            yield Case("FunctionRole", call.action, "", (), (Neighbour("stack's Trigger", "deployments", requests[0]),))
            continue
        if call.action not in CHANGES:
            raise Unreadable(f"{call.action} has no neighbours: add some to CHANGES in tests/policy/cases.py")
        changes = list(CHANGES[call.action])
        if call.action == "codepipeline:ListActionExecutions" and stack.has("PipelineNames"):
            changes.extend(OTHER_PIPELINES)
        if call.action == "ssm:SendCommand":
            kinds = [kind for kind in NODE_CHANGES if any(kind in name for name in call.resources)]
            changes.extend(change for kind in kinds for change in NODE_CHANGES[kind])
        if call.action == "ssm:SendCommand" and stack.has("InstanceTagValue"):
            changes.extend(OTHER_TAGS)
        yield Case("FunctionRole", call.action, "", requests, neighbours(requests, changes))


def tags_of(stack, name):
    """The tag that an instance carries where only tagged ones may be sent to."""
    return ((TAG, TAG_VALUE),) if "instance/" in name and stack.has("InstanceTagValue") else ()


# ---- by AWS services, in a role's name -------------------------------------------------------------------------------

QUEUE_CHANGES = [
    resource("queue", "another one of this account", r"[^:]+$", "another-queue"),
    longer("queue", r"[^:]+$"),
    resource("queue's account", ELSEWHERE, rf":{ACCOUNT}:", f":{ELSEWHERE}:"),
    action("sqs:ReceiveMessage"),
    action("sqs:PurgeQueue"),
]
LOG_CHANGES = [
    resource("log group", "another one of this account", r"log-group:[^:]+", "log-group:another-group"),
    resource("log group", "one of another resource of the stack", "FunctionLogs", "OtherLogs"),
    longer("log group", r"log-group:[^:]+"),
    resource("log group's account", ELSEWHERE, rf":{ACCOUNT}:", f":{ELSEWHERE}:"),
    action("logs:GetLogEvents"),
    action("logs:DeleteLogStream"),
]
KEY_CHANGES = [
    resource("key", "another one of this account", r"key/.*", "key/99999999-9999-9999-9999-999999999999"),
    circumstance("kms:ViaService", "kms:ViaService", "none: by the role itself"),
    circumstance("kms:ViaService", "kms:ViaService", "s3", ("kms:ViaService", f"s3.{REGION}.amazonaws.com")),
    action("kms:Encrypt"),
    action("kms:CreateGrant"),
    action("kms:ScheduleKeyDeletion"),
]
FUNCTION_CHANGES = [
    resource("function", "another one of this account", r"[^:]+$", "another-function"),
    longer("function", r"[^:]+$"),
    resource("function's account", ELSEWHERE, rf":{ACCOUNT}:", f":{ELSEWHERE}:"),
    action("lambda:UpdateFunctionCode"),
    action("lambda:DeleteFunction"),
]


def made_in_a_roles_name(stack):
    """What AWS services do with the roles, without a call of the function's code."""
    stream = f"{LOG_GROUP}:log-stream:2026/02/17/restarter[$LATEST]0123456789abcdef0123456789abcdef"
    for name in ("logs:CreateLogStream", "logs:PutLogEvents"):
        yield in_a_roles_name("FunctionRole", name, stream, (), "Lambda writes the function's log", LOG_CHANGES)
    yield in_a_roles_name("FunctionRole", "sqs:SendMessage", QUEUE, (), "Lambda keeps an event that failed three times", QUEUE_CHANGES)
    if stack.has("ScheduleExpression"):
        yield in_a_roles_name("ScheduleRole", "lambda:InvokeFunction", FUNCTION, (), "EventBridge Scheduler starts the function", FUNCTION_CHANGES)
        yield in_a_roles_name("ScheduleRole", "sqs:SendMessage", QUEUE, (), "EventBridge Scheduler keeps what it could not deliver", QUEUE_CHANGES)
    for role, service, key in key_uses(stack):
        via = (("kms:ViaService", f"{service}.{REGION}.amazonaws.com"),)
        for name in ("kms:Decrypt", "kms:GenerateDataKey"):
            yield in_a_roles_name(role, name, key, via, f"{service.upper()} encrypts what the role gives it", KEY_CHANGES)


def key_uses(stack):
    """(role, service, key): who encrypts what, in whose name."""
    if stack.has("CustomerKey"):
        yield "FunctionRole", "sqs", KEY
        if not stack.has("TopicArn"):
            yield "FunctionRole", "sns", KEY
        if stack.has("ScheduleExpression"):
            yield "ScheduleRole", "sqs", KEY
    if stack.has("TopicKeyArn"):
        yield "FunctionRole", "sns", GIVEN_KEY


def in_a_roles_name(role, name, on, context, reason, changes):
    """A case with one request."""
    requests = (Request(PRINCIPALS[role], name, on, context),)
    return Case(role, name, reason, requests, neighbours(requests, changes))


# ---- by AWS services, in their own name ------------------------------------------------------------------------------

SOMEBODY_ELSE = principal(f"arn:aws:iam::{ELSEWHERE}:role/somebody")
OTHER_SOURCE_ACCOUNTS = [
    circumstance("aws:SourceAccount", "aws:SourceAccount", ELSEWHERE, ("aws:SourceAccount", ELSEWHERE)),
    circumstance("aws:SourceAccount", "aws:SourceAccount", "none"),
]
LOGS_CONTEXT = "kms:EncryptionContext:aws:logs:arn"


def made_by_services(stack):
    """What services do by themselves: allowed by the policy of the key, of the queue, or of the role that they assume."""
    rule, other_rule = (PIPELINE_RULE, DEPLOYMENT_RULE) if stack.on_pipelines else (DEPLOYMENT_RULE, PIPELINE_RULE)
    yield by_service(
        "FailedEventsPolicy",
        Request("events.amazonaws.com", "sqs:SendMessage", QUEUE, (("aws:SourceArn", rule),)),
        [
            circumstance("aws:SourceArn", "aws:SourceArn", "the rule of the other trigger", ("aws:SourceArn", other_rule)),
            circumstance("aws:SourceArn", "aws:SourceArn", "another rule", ("aws:SourceArn", rule.replace("restarter", "another"))),
            circumstance("aws:SourceArn", "aws:SourceArn", "the same rule elsewhere", ("aws:SourceArn", rule.replace(ACCOUNT, ELSEWHERE))),
            circumstance("aws:SourceArn", "aws:SourceArn", "none"),
            principal("s3.amazonaws.com"),
            SOMEBODY_ELSE,
            action("sqs:ReceiveMessage"),
        ],
    )
    yield by_service("trust of FunctionRole", Request("lambda.amazonaws.com", "sts:AssumeRole", FUNCTION_ROLE), [principal("ec2.amazonaws.com"), SOMEBODY_ELSE])
    if stack.has("ScheduleExpression"):
        request = Request("scheduler.amazonaws.com", "sts:AssumeRole", SCHEDULE_ROLE, (("aws:SourceAccount", ACCOUNT),))
        yield by_service("trust of ScheduleRole", request, [*OTHER_SOURCE_ACCOUNTS, principal("lambda.amazonaws.com"), SOMEBODY_ELSE])
    if stack.has("CustomerKey"):
        yield from uses_of_the_key()


def uses_of_the_key():
    """Alarms publish to the encrypted topic, rules send to the encrypted queue, SNS delivers to such queues; CloudWatch keeps the encrypted log."""
    for name in ("kms:Decrypt", "kms:GenerateDataKey"):
        others = [principal("s3.amazonaws.com"), SOMEBODY_ELSE, action("kms:ScheduleKeyDeletion"), action("kms:PutKeyPolicy")]
        # EventBridge does not tell KMS the account in whose name it asks, so it must be allowed without.
        # https://docs.aws.amazon.com/sns/latest/dg/sns-key-management.html#compatibility-with-aws-services
        yield by_service("policy of Key", Request("events.amazonaws.com", name, KEY), others)
        for service in ("cloudwatch", "sns"):
            request = Request(f"{service}.amazonaws.com", name, KEY, (("aws:SourceAccount", ACCOUNT),))
            yield by_service("policy of Key", request, [*OTHER_SOURCE_ACCOUNTS, *others])
    for name in ("kms:Encrypt", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:GenerateDataKey", "kms:DescribeKey"):
        request = Request(f"logs.{REGION}.amazonaws.com", name, KEY, ((LOGS_CONTEXT, LOG_GROUP),))
        changes = [
            circumstance("log group's account", LOGS_CONTEXT, ELSEWHERE, (LOGS_CONTEXT, LOG_GROUP.replace(ACCOUNT, ELSEWHERE))),
            circumstance("log group's region", LOGS_CONTEXT, "eu-central-1", (LOGS_CONTEXT, LOG_GROUP.replace(REGION, "eu-central-1"))),
            circumstance("log group", LOGS_CONTEXT, "something that is no log group", (LOGS_CONTEXT, LOG_GROUP.replace("log-group", "destination"))),
            circumstance("log group", LOGS_CONTEXT, "none"),
            principal("logs.eu-central-1.amazonaws.com"),
        ]
        yield by_service("policy of Key", request, changes)


def by_service(subject, request, changes):
    """A case with one request that a policy of a resource decides."""
    return Case(subject, request.action, "", (request,), neighbours((request,), changes))


def cases(stack, calls: list[Call]):
    """Everything that a stack must allow, with its neighbours."""
    # The stories read one pipeline; the others of a list are read by the same call.
    listed = {Call(call.action, (re.sub(r"[^:]+$", OTHER_LISTED, call.resources[0]),)) for call in calls if call.action == "codepipeline:ListActionExecutions"}
    calls = [*calls, *sorted(listed - set(calls))] if stack.has("PipelineNames") else calls
    return [*made_by_the_stories(stack, calls), *made_in_a_roles_name(stack), *made_by_services(stack)]
