#!/usr/bin/env python3
"""Proves that check_policy.py can fail: template.yaml passes, and with each of these faults planted in it, or in what the stories did, it does not.

Needs no transcripts: the stories are one call of each kind. Exit status: 0 when every fault is found, 1 when one is not.
"""

import copy
import json
import pathlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import calls
import cases
import granted
from calls import ACCOUNT, Call
from check_policy import ask, judge, prepare
from granted import DOCUMENT, FUNCTION, LOG_GROUP, PIPELINE, QUEUE, REGION, TOPIC, WINDOWS_DOCUMENT

STACKS = {stack.name: stack for stack in cases.STACKS}
# Between them, they have every statement.
FULL = ["everything on pipelines", "everything on deployments"]


def usual_stories():
    """One call of each kind."""
    group = f"arn:aws:codedeploy:{REGION}:{ACCOUNT}:deploymentgroup:my-application/my-deployment-group"
    resources = dict.fromkeys(["BatchGetDeployments", "GetDeployment", "GetDeploymentGroup", "ListDeployments"], (group,))
    made = [Call(f"codedeploy:{name}", arns) for name, arns in resources.items()]
    made += [Call(name, ("*",)) for name in sorted(calls.WITHOUT_RESOURCE)]
    made.append(reading(PIPELINE))
    made.append(Call("sns:Publish", (TOPIC,)))
    made += [sending(document) for document in (DOCUMENT, WINDOWS_DOCUMENT)]
    return calls.Stories(transcripts=1, exchanges=len(made), calls=Counter(made))


def sending(document):
    """A SendCommand of a document to two instances and a machine outside EC2."""
    instances = [f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-0000000000000000{number}" for number in (1, 2)] + [f"arn:aws:ssm:{REGION}:{ACCOUNT}:managed-instance/mi-00000000000000001"]
    return Call("ssm:SendCommand", (f"arn:aws:ssm:{REGION}:{ACCOUNT}:document/{document}", *instances))


def reading(pipeline):
    """A ListActionExecutions of a pipeline."""
    return Call("codepipeline:ListActionExecutions", (f"arn:aws:codepipeline:{REGION}:{ACCOUNT}:{pipeline}",))


@dataclass
class Fault:
    """Something wrong, how to plant it, a part of what must be said of it, and the stack in which it must be found."""

    name: str
    plant: Callable
    found: str
    stack: str = "all pipelines"


# ---- faults in the policies ------------------------------------------------------------------------------------------


def statements(node):
    """Every statement below a node of the template, by its Sid; of a trust policy, which has none, "trust"."""
    found = {}
    if isinstance(node, dict):
        if "Effect" in node:
            return {node.get("Sid", "trust"): node}
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            found |= statements(part)
    return found


def leave_out(statement):
    """The template without this statement."""
    statement.clear()
    statement["Ref"] = "AWS::NoValue"


def each_widening(source, stack):
    """Without what keeps a statement of this stack narrow: its resource, its condition, the Deny itself. What else it can lose, the check itself leaves out."""
    grants = granted.grants(source, STACKS[stack].parameters)
    for subject, policy in grants.policies().items():
        owner = subject.split(" of ")[-1]
        for sid, statement in statements(policy).items():
            changes = {"left out": leave_out} if statement["Effect"] == "Deny" else {}
            if owner.endswith("Role") and statement.get("Resource", "*") != "*":
                changes["on every resource"] = lambda found: found.update(Resource="*")
            if "Condition" in statement:
                changes["without its condition"] = lambda found: found.pop("Condition")
            for name, change in changes.items():
                yield Fault(f"{owner}, {sid}: {name}", in_statement(owner, sid, change), "must be refused", stack)


def in_statement(owner, sid, change):
    """A plant that changes a statement."""
    return lambda source, _: change(statements(source["Resources"][owner])[sid])


def edited(owner, sid, **fields):
    """A plant that sets fields of a statement."""
    return in_statement(owner, sid, lambda found: found.update(fields))


def role(sid, **fields):
    """A plant that sets fields of a statement of the function's role."""
    return edited("FunctionRole", sid, **fields)


def negated(sid, field):
    """A plant that turns Action or Resource into NotAction or NotResource."""
    return in_statement("FunctionRole", sid, lambda found: found.update({f"Not{field}": found.pop(field)}))


def in_account(service_and_region, name):
    """The ARN of resources of the stack's account."""
    return f"arn:aws:{service_and_region}:{ACCOUNT}:{name}"


def tag_condition(operator, key):
    """SendToInstances with another condition."""
    return role("SendToInstances", Condition={operator: {key: {"Ref": "InstanceTagValue"}}})


def rule_condition(source):
    """The queue's policy with another source."""
    return edited("FailedEventsPolicy", KEEP_FOR_THE_RULE, Condition={"ArnLike": {"aws:SourceArn": source}})


def via(service):
    """The condition that a key is used through a service."""
    return {"StringLike": {"kms:ViaService": service}}


def source_account(account):
    """The condition that a service asks in an account's name."""
    return {"StringLike": {"aws:SourceAccount": account}}


def service(*names):
    """Services as a principal."""
    return {"Service": [f"{name}.amazonaws.com" for name in names]}


def logs_condition(pattern):
    """The key's statement for logs with another pattern for what is encrypted."""
    return edited("Key", "Logs", Condition={"ArnLike": {cases.LOGS_CONTEXT: pattern}})


def listed(*names):
    """The statement for the listed pipelines with these names."""
    return role("ReadNoPipelineButTheListed", NotResource=[f"arn:*:codepipeline:*:*:{name}" for name in names])


def attach_managed_policy(source, _):
    source["Resources"]["FunctionRole"]["Properties"]["ManagedPolicyArns"] = ["arn:aws:iam::aws:policy/AmazonSSMFullAccess"]


def add_trust(source, _):
    trust = source["Resources"]["FunctionRole"]["Properties"]["AssumeRolePolicyDocument"]
    trust["Statement"].append(copy.deepcopy(trust["Statement"][0]) | {"Principal": ACCOUNT_ROOT})


def add_policy_resource(source, _):
    source["Resources"]["More"] = {"Type": "AWS::IAM::Policy", "Properties": {}}


def repeated(**fields):
    """A plant that tells the topic in a second statement."""

    def plant(source, _):
        policy = source["Resources"]["FunctionRole"]["Properties"]["Policies"][0]["PolicyDocument"]
        policy["Statement"].append(copy.deepcopy(statements(policy)["TellTheTopic"]) | fields)

    return plant


MISSING = "must be allowed, and is refused"
ALARMS = "AlarmsToTheTopic"
RULES = "RulesToTheQueue"
KEEP_FOR_THE_RULE = "KeepWhatTheRuleCannotDeliver"
LONGER = "with -2 behind it"
ACCOUNT_ROOT = {"AWS": f"arn:aws:iam::{ACCOUNT}:root"}
OWN_DOCUMENT = in_account("ssm:*", f"document/{DOCUMENT}")
OWN_DOCUMENTS = [OWN_DOCUMENT, in_account("ssm:*", f"document/{WINDOWS_DOCUMENT}")]
POWERSHELL = in_account("ssm:*", "document/AWS-RunPowerShellScript")
OTHER_TOPICS = in_account(f"sns:{REGION}", "ops-*")
STACKS_LOGS = {"Fn::Sub": in_account(f"logs:{REGION}", "log-group:${AWS::StackName}-*")}
KEY_ACTIONS = ["kms:Decrypt", "kms:GenerateDataKey*"]
INSTANCES = in_account("ec2:*", "instance/*")
MACHINES = in_account("ssm:*", "managed-instance/*")
IN_POLICIES = [
    Fault("no role for the function", in_statement("FunctionRole", "trust", leave_out), MISSING),
    Fault("no key for the logs", in_statement("Key", "Logs", leave_out), MISSING, "own key"),
    Fault("no action that a story calls", role("TellTheTopic", Action="sns:Subscribe"), "lacks sns:Publish, which a story calls"),
    Fault("no action that a service needs", role("WriteLogs", Action="logs:PutLogEvents"), "lacks logs:CreateLogStream, which a service needs"),
    Fault("an action that nobody calls", role("TellTheTopic", Action=["sns:Publish", "sns:Subscribe"]), "allows sns:Subscribe, which"),
    Fault("a wildcard for the actions", role("ReadDeploymentsOfAGroup", Action="codedeploy:Get*"), "allows codedeploy:Get*, which"),
    Fault("every action but one", negated("TellTheTopic", "Action"), "name its actions"),
    Fault("every resource but one", negated("TellTheTopic", "Resource"), "name its resources"),
    Fault("the document for Linux alone", role("SendTheseDocuments", Resource=OWN_DOCUMENT), MISSING),
    Fault("every document of the account", role("SendTheseDocuments", Resource=in_account("ssm:*", "document/*")), "document: another one"),
    Fault("the documents that AWS owns", role("SendTheseDocuments", Resource=[*OWN_DOCUMENTS, "arn:aws:ssm:*::document/*"]), "AWS-RunShellScript"),
    Fault("the document of any account", role("SendTheseDocuments", Resource=[*OWN_DOCUMENTS, f"arn:aws:ssm:*:*:document/{DOCUMENT}"]), "document's account"),
    Fault("instances of any account", role("SendToInstances", Resource=["arn:aws:ec2:*:*:instance/*", MACHINES]), "instance's account"),
    Fault("machines of any account", role("SendToInstances", Resource=[INSTANCES, "arn:aws:ssm:*:*:managed-instance/*"]), "machine's account"),
    Fault("no machine outside EC2", role("SendToInstances", Resource=INSTANCES), MISSING),
    Fault("the tag's name misspelled", tag_condition("StringEquals", "ssm:resourceTag/AgentRestarts"), MISSING, "tagged instances"),
    Fault("the tag's key misspelled", tag_condition("StringEquals", "ssm:resourcesTag/AgentRestart"), MISSING, "tagged instances"),
    Fault("untagged instances too", tag_condition("StringEqualsIfExists", cases.TAG), "AgentRestart: none", "tagged instances"),
    Fault("the tag's value in any letters", tag_condition("StringEqualsIgnoreCase", cases.TAG), "in small letters", "tagged instances"),
    Fault("every other tagged instance", tag_condition("StringNotEquals", cases.TAG), "another value", "tagged instances"),
    Fault("another topic", role("TellTheTopic", Resource=f"{TOPIC}-2"), MISSING),
    Fault("every topic of the account", role("TellTheTopic", Resource=in_account("sns:us-east-1", "*")), "topic: another one"),
    Fault("the topic's name in any region", role("TellTheTopic", Resource=TOPIC.replace(REGION, "*")), "topic's region", "given topic"),
    Fault("a resource that is no ARN", role("TellTheTopic", Resource="agent-restarts"), "topic: another one"),
    Fault("the own topic where one is given", role("TellTheTopic", Resource={"Ref": "Topic"}), "Topic, which a stack with these", "given topic"),
    Fault("a value of another stack", role("TellTheTopic", Resource={"Fn::ImportValue": "topic"}), "Fn::ImportValue topic, which cannot be resolved"),
    Fault("pipelines of any account", role("ReadWhatThePipelineDeployed", Resource="arn:aws:codepipeline:*:*:*"), "pipeline's account"),
    Fault("a list of all", role("ReadNoPipelineButTheListed", NotResource="arn:aws:codepipeline:*:*:*"), "pipeline: another one", "listed pipelines"),
    Fault("groups of any account", role("ReadDeploymentsOfAGroup", Resource="arn:aws:codedeploy:*:*:deploymentgroup:*"), "deployment group's account"),
    Fault("groups by a wrong separator", role("ReadDeploymentsOfAGroup", Resource=in_account("codedeploy:*", "deploymentgroup/*")), MISSING),
    Fault("the given key for every service", role("UseTheTopicsKey", Condition=via("*")), "kms:ViaService: s3", "given topic with a key"),
    Fault("anybody may be the function", role("trust", Principal={"AWS": "*"}), ":role/somebody"),
    Fault("more services may be the function", role("trust", Principal={"Service": ["lambda.amazonaws.com", "ec2.amazonaws.com"]}), "by ec2.amazonaws.com"),
    Fault("every function", edited("ScheduleRole", "InvokeTheFunction", Resource=in_account("lambda:*", "function:*")), "function: another one", "schedule"),
    Fault("the key for every service", edited("Key", RULES, Principal="*"), "by s3.amazonaws.com", "own key"),
    Fault("the key not for alarms", edited("Key", ALARMS, Principal=service("events")), "by cloudwatch.amazonaws.com", "own key"),
    Fault("the key not for rules", edited("Key", RULES, Principal=service("cloudwatch")), "by events.amazonaws.com", "own key"),
    Fault("the key only for who tells its account", edited("Key", RULES, Condition=source_account(ACCOUNT)), MISSING, "own key"),
    Fault("the key for anybody's alarms", edited("Key", ALARMS, Condition=source_account("*")), f"SourceAccount: {cases.ELSEWHERE}", "own key"),
    Fault("the key for anybody's topics", edited("Key", "TopicToQueuesWithThisKey", Condition=source_account("*")), f"SourceAccount: {cases.ELSEWHERE}", "own key"),
    Fault("the key for every account", edited("Key", "TheAccountDecidesByItsOwnPolicies", Principal={"AWS": "*"}), ":role/somebody", "own key"),
    Fault("the queue for any rule", rule_condition(in_account("events:*", "rule/*")), "the rule of the other trigger"),
    Fault("the queue for the wrong rule", rule_condition(in_account("events:*", "rule/*Pipeline*")), MISSING, "deployments"),
    Fault("the queue for a rule that is not there", rule_condition({"Fn::GetAtt": ["PipelineRule", "Arn"]}), "PipelineRule.Arn, which a stack", "deployments"),
    Fault("one purpose twice", repeated(), "2 statements with the Sid TellTheTopic"),
    Fault("one purpose under two names", repeated(Sid="TellTheTopicToo"), "TellTheTopicToo: nobody needs this statement"),
    Fault("a managed policy", attach_managed_policy, "FunctionRole has managed policies"),
    Fault("a policy beside the role", add_policy_resource, "More is an AWS::IAM::Policy"),
]

UNNEEDED = [
    Fault("the account may be the function", role("trust", Principal=service("lambda") | ACCOUNT_ROOT), f"nobody needs Principal AWS {ACCOUNT_ROOT['AWS']}"),
    Fault("the account may, by a statement of its own", add_trust, "without a Sid (2): nobody needs this statement"),
    Fault("Systems Manager may be the function", role("trust", Principal=service("lambda", "ssm")), "nobody needs Principal Service ssm"),
    Fault("the account may be the schedule", edited("ScheduleRole", "trust", Principal=service("scheduler") | ACCOUNT_ROOT), "nobody needs Principal AWS", "schedule"),
    Fault("a document that runs anything", role("SendTheseDocuments", Resource=[*OWN_DOCUMENTS, POWERSHELL]), f"nobody needs Resource {POWERSHELL}"),
    Fault("other topics too", role("TellTheTopic", Resource=[{"Ref": "Topic"}, OTHER_TOPICS]), f"nobody needs Resource {OTHER_TOPICS}"),
    Fault("a pipeline that is not listed", listed(PIPELINE, cases.OTHER_LISTED, "secret"), "nobody needs NotResource arn:*:codepipeline:*:*:secret", "listed pipelines"),
    Fault("the key for Lambda", edited("Key", RULES, Principal=service("events", "lambda")), "nobody needs Principal Service lambda", "own key"),
    Fault("one more action on the key", edited("Key", "TopicToQueuesWithThisKey", Action=[*KEY_ACTIONS, "kms:Encrypt"]), "nobody needs Action kms:Encrypt", "own key"),
    Fault("the key through one more service", role("UseTheStacksKey", Condition=via(["sns.*", "sqs.*", "ssm.*"])), "kms:ViaService ssm.*", "own key"),
    Fault("the queue for topics", edited("FailedEventsPolicy", KEEP_FOR_THE_RULE, Principal=service("events", "sns")), "nobody needs Principal Service sns"),
]
BROADER = [
    Fault("documents whose names begin alike", role("SendTheseDocuments", Resource=[*OWN_DOCUMENTS, f"{OWN_DOCUMENT}*"]), f"document: the same name {LONGER}"),
    Fault("topics whose names begin alike", role("TellTheTopic", Resource=f"{TOPIC}*"), f"topic: the same name {LONGER}"),
    Fault("queues whose names begin alike", role("KeepFailedInvocations", Resource=f"{QUEUE}*"), f"queue: the same name {LONGER}"),
    Fault("functions whose names begin alike", edited("ScheduleRole", "InvokeTheFunction", Resource=f"{FUNCTION}*"), f"function: the same name {LONGER}", "schedule"),
    Fault("pipelines whose names begin alike", listed(f"{PIPELINE}*", cases.OTHER_LISTED), f"pipeline: the same name {LONGER}", "listed pipelines"),
    Fault("log groups whose names begin alike", role("WriteLogs", Resource=f"{LOG_GROUP}*"), f"log group: the same name {LONGER}"),
    Fault("every log group of the stack", role("WriteLogs", Resource=STACKS_LOGS), "log group: one of another resource of the stack"),
    Fault("pipelines of any region", role("ReadWhatThePipelineDeployed", Resource=in_account("codepipeline:*", "*")), "pipeline's region"),
    Fault("the key for the logs of any region", logs_condition(in_account("logs:*", "log-group:*")), "log group's region", "own key"),
    Fault("the key for what is no log", logs_condition(in_account(f"logs:{REGION}", "*")), "something that is no log group", "own key"),
    Fault("every reading of Auto Scaling", role("ReadMembersAndTheirLifecycle", Action="autoscaling:Describe*"), "action: autoscaling:DescribeTags"),
    Fault("every reading of EC2", role("ReadStatesOfInstances", Action="ec2:Describe*"), "action: ec2:DescribeTags"),
]

# ---- faults in what the stories did ----------------------------------------------------------------------------------


def without_publishing(_, stories):
    del stories.calls[Call("sns:Publish", (TOPIC,))]


def with_call(call):
    """A plant that adds a call."""
    return lambda _, stories: stories.calls.update([call])


IN_STORIES = [
    Fault("no story publishes", without_publishing, "allows sns:Publish, which no story calls"),
    Fault("another document is sent", with_call(sending("AWS-RunShellScript")), "document/AWS-RunShellScript"),
    Fault("another pipeline is read", with_call(reading("secret")), ":secret", "listed pipelines"),
    Fault("another topic is told", with_call(Call("sns:Publish", (f"{TOPIC}-2",))), "agent-restarts-2"),
    Fault("a resource where IAM knows none", with_call(Call("ssm:ListCommandInvocations", (TOPIC,))), "not judged by the simulator"),
    Fault("a group is never known", lambda _, stories: stories.groupless.update(["codedeploy:BatchGetApplications"]), "codedeploy:BatchGetApplications"),
]


def exchange(service, operation, request):
    """A line of a transcript."""
    return json.dumps({"service": service, "operation": operation, "region": REGION, "request": {"body": json.dumps(request)}, "response": None})


UNREADABLE = {
    "a line that is cut off": ('{"service": "ssm", "oper', "is not an exchange"),
    "a call of a new kind": (exchange("ssm", "StartSession", {"Target": "i-1"}), "ssm:StartSession is new"),
    "instances by their tags": (exchange("ssm", "SendCommand", {"DocumentName": DOCUMENT, "Targets": []}), "without 'InstanceIds'"),
    "no exchange at all": (None, "holds no transcript"),
}


def unread(line):
    """What calls.py says to a folder with this line."""
    with tempfile.TemporaryDirectory() as folder:
        if line is not None:
            pathlib.Path(folder, "world.jsonl").write_text(line)
        try:
            calls.read(pathlib.Path(folder))
        except calls.Unreadable as error:
            return str(error)
    return ""


def planted(fault, source, needed):
    """The check of the fault's stack, with the fault in the template or in the stories. What is needed without the fault is not asked about again."""
    source, stories = copy.deepcopy(source), usual_stories()
    fault.plant(source, stories)
    return prepare(source, STACKS[fault.stack], stories, needed)


def main():
    """Plants each fault, asks about all of them at once, and tells those that were not found."""
    started = time.monotonic()
    source = granted.read_template()
    widenings = {fault.name: fault for stack in FULL for fault in each_widening(source, stack)}
    faults = [*widenings.values(), *IN_POLICIES, *UNNEEDED, *BROADER, *IN_STORIES]
    sound = [prepare(source, stack, usual_stories()) for stack in cases.STACKS]
    needed = {need.part for check in sound for need in check.needs}
    faulty = [planted(fault, source, needed) for fault in faults]
    questions = ask([*sound, *faulty])
    for run in [sound, *([check] for check in faulty)]:
        judge(run, questions)
    missed = [f"without a fault: {problem}" for check in sound for problem in check.problems]
    for fault, check in zip(faults, faulty, strict=True):
        if not any(fault.found in problem for problem in check.problems):
            missed.append(f"not found: {fault.name} (stack with {fault.stack}), which should be told with {fault.found!r}; told was {check.problems}")
    for name, (line, found) in UNREADABLE.items():
        if found not in unread(line):
            missed.append(f"not found: {name}, which should be told with {found!r}; told was {unread(line)!r}")
    for problem in missed:
        print(f"policy: {problem}", file=sys.stderr)
    print(f"policy: {len(faults) + len(UNREADABLE)} faults planted, {len(missed)} not found, {time.monotonic() - started:.1f} s")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
