"""What a stack of template.yaml grants: the policies that CloudFormation would hand to IAM, SQS and KMS, with every intrinsic function resolved.

The conditions of template.yaml are decided by tests/template; what is left are references to resources, whose values are given here.
"""

import pathlib
import re
import sys
from dataclasses import dataclass, replace

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "template"))

import stacks
import template
from calls import ACCOUNT

REGION = "us-east-1"
# The names that the stories' world has for what a stack makes or is given.
DOCUMENT = "restart-agent"
WINDOWS_DOCUMENT = "restart-windows-agent"
TOPIC = f"arn:aws:sns:{REGION}:{ACCOUNT}:agent-restarts"
PIPELINE = "my-pipeline"
# What else a stack makes, with names as CloudFormation makes them.
QUEUE = f"arn:aws:sqs:{REGION}:{ACCOUNT}:restarter-FailedEvents-AbCdEf123456"
LOG_GROUP = f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:restarter-FunctionLogs-AbCdEf123456"
FUNCTION = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:restarter-RestartFunction-AbCdEf123456"
KEY = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555"
PIPELINE_RULE = f"arn:aws:events:{REGION}:{ACCOUNT}:rule/restarter-PipelineRule-AbCdEf123456"
DEPLOYMENT_RULE = f"arn:aws:events:{REGION}:{ACCOUNT}:rule/restarter-DeploymentRule-AbCdEf123456"
FUNCTION_ROLE = f"arn:aws:iam::{ACCOUNT}:role/restarter-FunctionRole-AbCdEf123456"
SCHEDULE_ROLE = f"arn:aws:iam::{ACCOUNT}:role/restarter-ScheduleRole-AbCdEf123456"

# What a reference to a resource gives (CloudFormation's template reference, "Return values" of each type). Only those that policies may need are here.
VALUES = {
    "RestartDocument": DOCUMENT,
    "WindowsRestartDocument": WINDOWS_DOCUMENT,
    "Topic": TOPIC,
    "FailedEvents.Arn": QUEUE,
    # A log group's ARN is given with ":*" at its end.
    "FunctionLogs.Arn": f"{LOG_GROUP}:*",
    "RestartFunction.Arn": FUNCTION,
    "Key.Arn": KEY,
    "PipelineRule.Arn": PIPELINE_RULE,
    "DeploymentRule.Arn": DEPLOYMENT_RULE,
}
# Where policies stand, by type of resource; a grant that stood anywhere else would not be judged.
POLICIES = {"AWS::IAM::Role", "AWS::KMS::Key", "AWS::SQS::QueuePolicy"}


class Unresolved(Exception):
    """A part of a policy that is not plain data for these parameters: what CloudFormation would refuse, or this module does not know."""


@dataclass
class Grants:
    """The policy documents of one stack, each under what a case calls its subject (cases.py)."""

    # What each role may do.
    roles: dict[str, dict]
    # Who may use what: the trust of each role, the policies of the queue and of the key.
    resources: dict[str, dict]

    def policies(self):
        """All of them."""
        return self.roles | self.resources

    def exchanged(self, subject, policy):
        """The grants with another policy of this subject."""
        if subject in self.roles:
            return replace(self, roles=self.roles | {subject: policy})
        return replace(self, resources=self.resources | {subject: policy})


def read_template():
    """template.yaml as data."""
    return template.read(template.TEMPLATE.read_text())


def grants(source, parameters):
    """The grants of the template with these parameters."""
    resources = stacks.stack(source, parameters)["Resources"]
    for name, resource in resources.items():
        kind = resource["Type"]
        if kind not in POLICIES and (kind.startswith("AWS::IAM::") or kind.endswith("Policy")):
            raise Unresolved(
                f"{name} is an {kind}, which tests/policy does not judge: put its statements into a role's own policy, or teach granted.py to read it"
            )
    roles, policies = {}, {}
    for name, role in properties_of("AWS::IAM::Role", resources):
        if "ManagedPolicyArns" in role:
            raise Unresolved(f"{name} has managed policies, whose statements are not in the template: write the statements into the role's own policy")
        statements = [statement for policy in role["Policies"] for statement in policy["PolicyDocument"]["Statement"]]
        roles[name] = bound({"Version": "2012-10-17", "Statement": statements}, resources, name)
        policies[f"trust of {name}"] = bound(role["AssumeRolePolicyDocument"], resources, name)
    for name, policy in properties_of("AWS::SQS::QueuePolicy", resources):
        policies[name] = bound(policy["PolicyDocument"], resources, name)
    for name, key in properties_of("AWS::KMS::Key", resources):
        policies[f"policy of {name}"] = bound(key["KeyPolicy"], resources, name)
    return Grants(roles, policies)


def properties_of(kind, resources):
    """(logical name, properties) of the stack's resources of a type."""
    return [(name, resource["Properties"]) for name, resource in resources.items() if resource["Type"] == kind]


def bound(node, resources, owner):
    """The node with a value for every reference to a resource."""
    if isinstance(node, list):
        return [bound(part, resources, owner) for part in node]
    if not isinstance(node, dict):
        return node
    if len(node) == 1:
        ((function, argument),) = node.items()
        if function == "Ref":
            return value(argument, resources, owner)
        if function == "Fn::GetAtt":
            return value(".".join(argument), resources, owner)
        if function == "Fn::Sub":
            return re.sub(r"\$\{([^}]+)\}", lambda found: value(found[1], resources, owner), argument)
        if function.startswith("Fn::"):
            raise Unresolved(f"the policy of {owner} holds {function} {argument}, which cannot be resolved: write it with parameters, or teach granted.py")
    return {key: bound(part, resources, owner) for key, part in node.items()}


def value(reference, resources, owner):
    """What `!Ref NAME` or `!GetAtt NAME.ATTRIBUTE` gives in this stack."""
    if reference.split(".")[0] not in resources:
        raise Unresolved(f"the policy of {owner} refers to {reference}, which a stack with these parameters does not have: choose by the same condition")
    if reference not in VALUES:
        raise Unresolved(f"the policy of {owner} refers to {reference}, whose value is unknown here: add it to VALUES in tests/policy/granted.py")
    return VALUES[reference]


def as_list(value):
    """IAM's "one or a list" as a list."""
    return value if isinstance(value, list) else [value]
