"""The calls to AWS that the stories make, read from their transcripts (sim/README.md, "The transcript"), as what IAM is asked about each of them.

Which resource an operation is authorised against comes from the Service Authorization Reference; the simulator holds it against the same tables, and refuses
to judge a call whose resource does not fit its operation.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import parse_qs

# The account that the simulated AWS plays, unless a world says otherwise.
ACCOUNT = "123456789012"

# Operations for which IAM knows no resource.
WITHOUT_RESOURCE = {
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeAutoScalingInstances",
    "codedeploy:ListDeploymentTargets",
    "ec2:DescribeInstances",
    "ssm:DescribeInstanceInformation",
    "ssm:ListCommandInvocations",
}


class Unreadable(Exception):
    """A transcript that cannot be turned into questions to IAM: what, where, and what to do about it."""


@dataclass(frozen=True, order=True)
class Call:
    """One call as IAM sees it: an action, and every resource on which it must be allowed. Its region stands in the resources' ARNs."""

    action: str
    resources: tuple[str, ...]


@dataclass
class Stories:
    """What a folder of transcripts holds."""

    transcripts: int = 0
    exchanges: int = 0
    # Each distinct call, and how many exchanges made it.
    calls: Counter = field(default_factory=Counter)
    # Exchanges about a deployment whose group no answer of their world tells, by action: the world refused every reading of it.
    groupless: Counter = field(default_factory=Counter)

    def actions(self):
        """Every action that some story needs."""
        return {call.action for call in self.calls} | set(self.groupless)

    def shapes(self):
        """The distinct calls as far as IAM can tell them apart: of the instances, one for each form of id."""
        shapes = {}
        for call in sorted(self.calls):
            forms = {re.sub(r"(?<=instance/i-).*|(?<=instance/mi-).*", lambda found: "0" * len(found[0]), resource): resource for resource in reversed(call.resources)}
            shapes.setdefault((call.action, *forms), Call(call.action, tuple(reversed(forms.values()))))
        return list(shapes.values())


def read(folder):
    """The stories whose transcripts lie below the folder."""
    files = sorted(folder.rglob("*.jsonl"))
    if not files:
        raise Unreadable(f"{folder} holds no transcript; record them with: SIM_TRANSCRIPT_DIR={folder} cargo test --test stories")
    stories = Stories(transcripts=len(files))
    for file in files:
        world = [exchange_of(line, f"{file}:{number}") for number, line in enumerate(file.read_text().splitlines(), 1)]
        groups = groups_of_deployments(world)
        for exchange in world:
            stories.exchanges += 1
            resources = resources_of(exchange, groups)
            if resources is None:
                stories.groupless[exchange["action"]] += 1
            else:
                stories.calls[Call(exchange["action"], resources)] += 1
    return stories


def exchange_of(line, where):
    """The parts of a transcript's line that matter to IAM."""
    try:
        exchange = json.loads(line)
        body, response = exchange["request"]["body"], exchange["response"]
        return {
            "where": where,
            "action": f"{exchange['service']}:{exchange['operation']}",
            "region": exchange["region"],
            # SNS is the only service of the stories with a form as its body whose parameters name a resource.
            "request": {name: values[0] for name, values in parse_qs(body).items()} if exchange["service"] == "sns" else body,
            "answer": json.loads(response["body"]) if exchange["service"] == "codedeploy" and response and response["status"] == 200 else {},
        }
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{where} is not an exchange ({error!r}); empty the folder and record the stories again") from error


def groups_of_deployments(world):
    """(region, deployment id) → application/group, as far as the answers of one world tell it."""
    groups = {}
    for exchange in world:
        answer = exchange["answer"]
        for info in [answer["deploymentInfo"]] if "deploymentInfo" in answer else answer.get("deploymentsInfo", []):
            groups[exchange["region"], info["deploymentId"]] = f"{info['applicationName']}/{info['deploymentGroupName']}"
    return groups


def resources_of(exchange, groups):
    """The ARNs of the resources of a call; None when it names a deployment whose group is unknown."""
    action, region = exchange["action"], exchange["region"]
    if action in WITHOUT_RESOURCE:
        return ("*",)
    request = exchange["request"] if action == "sns:Publish" else json.loads(exchange["request"])
    try:
        match action:
            case "codepipeline:ListActionExecutions":
                return (f"arn:aws:codepipeline:{region}:{ACCOUNT}:{request['pipelineName']}",)
            case "codedeploy:GetDeploymentGroup" | "codedeploy:ListDeployments":
                return deployment_groups(region, [f"{request['applicationName']}/{request['deploymentGroupName']}"])
            case "codedeploy:GetDeployment" | "codedeploy:BatchGetDeployments":
                ids = request["deploymentIds"] if action == "codedeploy:BatchGetDeployments" else [request["deploymentId"]]
                known = [groups[region, id] for id in ids if (region, id) in groups]
                return deployment_groups(region, known) if known else None
            case "ssm:SendCommand":
                # IAM asks about the document and about every instance: each must be allowed.
                instances = [node(region, id) for id in sorted(request["InstanceIds"])]
                return (f"arn:aws:ssm:{region}:{ACCOUNT}:document/{request['DocumentName']}", *instances)
            case "sns:Publish":
                return (request["TopicArn"],)
    except KeyError as error:
        raise Unreadable(f"{exchange['where']}: {action} without {error}: teach resources_of in tests/policy/calls.py what it is authorised against") from error
    raise Unreadable(f"{exchange['where']}: {action} is new: say in tests/policy/calls.py what it is authorised against (Service Authorization Reference)")


def node(region, id):
    """The ARN of an instance of EC2's, or of a machine outside EC2."""
    return f"arn:aws:ssm:{region}:{ACCOUNT}:managed-instance/{id}" if id.startswith("mi-") else f"arn:aws:ec2:{region}:{ACCOUNT}:instance/{id}"


def deployment_groups(region, names):
    """The ARNs of `application/group`s."""
    return tuple(f"arn:aws:codedeploy:{region}:{ACCOUNT}:deploymentgroup:{name}" for name in sorted(set(names)))
