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
from check_policy import as_list, ask_and_judge, prepare
from granted import DOCUMENT, PIPELINE, REGION, TOPIC

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
    made.append(sending(DOCUMENT))
    return calls.Stories(transcripts=1, exchanges=len(made), calls=Counter(made))


def sending(document):
    """A SendCommand of a document to two instances."""
    instances = [f"arn:aws:ec2:{REGION}:{ACCOUNT}:instance/i-0000000000000000{number}" for number in (1, 2)]
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


def each_loss(translated, stack):
    """Whatever a statement of this stack can lose: itself, one of its actions, the narrowness of its resource, its condition."""
    grants = granted.grants(translated, STACKS[stack].parameters)
    for owner, policies in {
        "FunctionRole": [grants.roles["FunctionRole"], grants.trusts["FunctionRole"]],
        "ScheduleRole": [grants.roles["ScheduleRole"], grants.trusts["ScheduleRole"]],
        "FailedEventsPolicy": [grants.queue],
        "Key": [grants.key] if grants.key else [],
    }.items():
        for sid, statement in statements(policies).items():
            losses = {"left out": leave_out}
            actions = as_list(statement["Action"])
            if len(actions) > 1:
                losses |= {f"without {action}": lambda found, action=action: found["Action"].remove(action) for action in actions}
            if owner.endswith("Role") and statement.get("Resource", "*") != "*":
                losses["on every resource"] = lambda found: found.update(Resource="*")
            if "Condition" in statement:
                losses["without its condition"] = lambda found: found.pop("Condition")
            for loss, change in losses.items():
                yield Fault(f"{owner}, {sid}: {loss}", in_statement(owner, sid, change), "", stack)


def in_statement(owner, sid, change):
    """A plant that changes a statement."""
    return lambda translated, _: change(statements(translated["Resources"][owner])[sid])


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
    return edited("FailedEventsPolicy", "KeepWhatTheRuleCannotDeliver", Condition={"ArnLike": {"aws:SourceArn": source}})


def via(service):
    """The condition that a key is used through a service."""
    return {"StringLike": {"kms:ViaService": service}}


def source_account(account):
    """The condition that a service asks in an account's name."""
    return {"StringLike": {"aws:SourceAccount": account}}


def service(name):
    """A service as a principal."""
    return {"Service": f"{name}.amazonaws.com"}


def attach_managed_policy(translated, _):
    translated["Resources"]["FunctionRole"]["Properties"]["ManagedPolicyArns"] = ["arn:aws:iam::aws:policy/AmazonSSMFullAccess"]


def add_policy_resource(translated, _):
    translated["Resources"]["More"] = {"Type": "AWS::IAM::Policy", "Properties": {}}


def repeat_statement(translated, _):
    policy = translated["Resources"]["FunctionRole"]["Properties"]["Policies"][0]["PolicyDocument"]
    policy["Statement"].append(copy.deepcopy(statements(policy)["TellTheTopic"]))


MISSING = "must be allowed, and is refused"
ALARMS_AND_RULES = "AlarmsAndRules"
OWN_DOCUMENT = in_account("ssm:*", f"document/{DOCUMENT}")
INSTANCES = in_account("ec2:*", "instance/*")
IN_POLICIES = [
    Fault("an action that nobody calls", role("TellTheTopic", Action=["sns:Publish", "sns:Subscribe"]), "allows sns:Subscribe, which"),
    Fault("a wildcard for the actions", role("ReadDeploymentsOfAGroup", Action="codedeploy:Get*"), "allows codedeploy:Get*, which"),
    Fault("every action but one", negated("TellTheTopic", "Action"), "name its actions"),
    Fault("every resource but one", negated("TellTheTopic", "Resource"), "name its resources"),
    Fault("every document of the account", role("SendThisDocument", Resource=in_account("ssm:*", "document/*")), "document: another one"),
    Fault("the documents that AWS owns", role("SendThisDocument", Resource=[OWN_DOCUMENT, "arn:aws:ssm:*::document/*"]), "AWS-RunShellScript"),
    Fault("the document of any account", role("SendThisDocument", Resource=f"arn:aws:ssm:*:*:document/{DOCUMENT}"), "document's account"),
    Fault("instances of any account", role("SendToInstances", Resource="arn:aws:ec2:*:*:instance/*"), "instance's account"),
    Fault("machines outside EC2 too", role("SendToInstances", Resource=[INSTANCES, in_account("ssm:*", "managed-instance/*")]), "a machine outside EC2"),
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
    Fault("the key for every service", edited("Key", ALARMS_AND_RULES, Principal="*"), "by s3.amazonaws.com", "own key"),
    Fault("the key not for alarms", edited("Key", ALARMS_AND_RULES, Principal=service("events")), "by cloudwatch.amazonaws.com", "own key"),
    Fault("the key not for rules", edited("Key", ALARMS_AND_RULES, Principal=service("cloudwatch")), "by events.amazonaws.com", "own key"),
    Fault("the key only for who tells its account", edited("Key", ALARMS_AND_RULES, Condition=source_account(ACCOUNT)), MISSING, "own key"),
    Fault("the key for anybody's topics", edited("Key", "TopicToQueuesWithThisKey", Condition=source_account("*")), f"SourceAccount: {cases.ELSEWHERE}", "own key"),
    Fault("the key for every account", edited("Key", "TheAccountDecidesByItsOwnPolicies", Principal={"AWS": "*"}), ":role/somebody", "own key"),
    Fault("the queue for any rule", rule_condition(in_account("events:*", "rule/*")), "the rule of the other trigger"),
    Fault("the queue for the wrong rule", rule_condition(in_account("events:*", "rule/*Pipeline*")), MISSING, "deployments"),
    Fault("the queue for a rule that is not there", rule_condition({"Fn::GetAtt": ["PipelineRule", "Arn"]}), "PipelineRule.Arn, which a stack", "deployments"),
    Fault("one purpose twice", repeat_statement, "2 statements with the Sid TellTheTopic"),
    Fault("a managed policy", attach_managed_policy, "FunctionRole has managed policies"),
    Fault("a policy beside the role", add_policy_resource, "More is an AWS::IAM::Policy"),
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


def planted(fault, translated):
    """The check of the fault's stack, with the fault in the template or in the stories."""
    translated, stories = copy.deepcopy(translated), usual_stories()
    fault.plant(translated, stories)
    return prepare(translated, STACKS[fault.stack], stories)


def main():
    """Plants each fault, asks about all of them at once, and tells those that were not found."""
    started = time.monotonic()
    translated = granted.translated_template()
    losses = {fault.name: fault for stack in FULL for fault in each_loss(translated, stack)}
    faults = [*losses.values(), *IN_POLICIES, *IN_STORIES]
    sound = [prepare(translated, stack, usual_stories()) for stack in cases.STACKS]
    faulty = [planted(fault, translated) for fault in faults]
    ask_and_judge([*sound, *faulty])
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
