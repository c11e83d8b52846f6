"""The stacks that the template can become: sets of parameters, and what CloudFormation makes of the template for one of them."""

import itertools
import re

ACCOUNT = "123456789012"
REGION = "us-east-1"
PSEUDO_PARAMETERS = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/restarter/1",
    "AWS::StackName": "restarter",
    "AWS::URLSuffix": "amazonaws.com",
}
# What `!Ref AWS::NoValue` becomes, until whatever it stands in leaves it out.
NO_VALUE = object()

KEY = f"arn:aws:kms:eu-west-1:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab"
SCHEDULE = {"ScheduleExpression": "cron(0 3 ? * SUN *)", "ScheduleApplication": "my-application", "ScheduleDeploymentGroup": "my-deployment-group"}
GIVEN_TOPIC = {"TopicArn": f"arn:aws:sns:eu-west-1:{ACCOUNT}:restarts"}
DEPLOYMENTS = {"Trigger": "deployments"}
SUCCESS = {"After": "success"}
NAMED = {"PipelineNames": "my-pipeline,other-pipeline"}
EMAIL = {"AlertEmail": "somebody@example.com"}
TOPIC_KEY = {"TopicKeyArn": KEY}
ALARM_TOPIC = {"AlarmTopicArn": f"arn:aws:sns:{REGION}:{ACCOUNT}:alarms"}
TAG = {"InstanceTagValue": "after-deployment"}
BOUNDARY = {"PermissionsBoundaryArn": f"arn:aws:iam::{ACCOUNT}:policy/team/boundary"}
OWN_KEY = {"CustomerKey": "true"}

# Each list holds the choices of which a stack makes exactly one; every combination of them is allowed.
CHOICES = [
    [{}, NAMED, DEPLOYMENTS],
    [{}, SUCCESS],
    [{}, SCHEDULE],
    [{}, EMAIL, GIVEN_TOPIC, GIVEN_TOPIC | TOPIC_KEY],
    [{}, ALARM_TOPIC],
    [{}, TAG],
    [{}, BOUNDARY],
    [{}, OWN_KEY],
]

# The sets that are looked at one by one, by checkov and by the emulator: every choice once by itself, and together with all others of which it says something.
SETS = {
    "defaults": {},
    "deployments": DEPLOYMENTS,
    "after success alone": SUCCESS,
    "named pipelines": NAMED,
    "schedule": SCHEDULE,
    "own key, e-mail": OWN_KEY | EMAIL,
    "given topic": GIVEN_TOPIC,
    "given topic with key": GIVEN_TOPIC | TOPIC_KEY | ALARM_TOPIC,
    "tag": TAG,
    "boundary": BOUNDARY | SCHEDULE,
    "everything on pipelines": NAMED | SUCCESS | SCHEDULE | OWN_KEY | EMAIL | ALARM_TOPIC | TAG | BOUNDARY,
    "everything on deployments": DEPLOYMENTS | SUCCESS | SCHEDULE | OWN_KEY | GIVEN_TOPIC | TOPIC_KEY | TAG | BOUNDARY,
}


def every_set():
    """Every combination of the choices."""
    for chosen in itertools.product(*CHOICES):
        yield {name: value for choice in chosen for name, value in choice.items()}


def stack(template, values, pseudo_parameters={}):
    """Resources and outputs of a translated template for these parameters: conditions are decided, parameters are put in, and only references to resources
    stay as they are. A reference to a resource that this stack has not is left too: whoever reads the stack can find it. The pseudo parameters stand above
    those of this module."""
    return Resolver(template, values, pseudo_parameters).stack()


class Resolver:
    """The template, and the value of each parameter."""

    def __init__(self, template, values, pseudo_parameters={}):
        self.template = template
        self.values = PSEUDO_PARAMETERS | pseudo_parameters
        for name, parameter in template["Parameters"].items():
            value = values.get(name, parameter.get("Default"))
            is_list = parameter["Type"] == "CommaDelimitedList"
            self.values[name] = [member.strip() for member in value.split(",")] if is_list else value

    def stack(self):
        """The template without everything that a condition leaves out."""
        kept = {}
        for section in ("Resources", "Outputs"):
            kept[section] = {
                name: self.resolved({key: value for key, value in part.items() if key != "Condition"})
                for name, part in self.template.get(section, {}).items()
                if "Condition" not in part or self.holds({"Condition": part["Condition"]})
            }
        return kept

    def holds(self, condition):
        """Whether a condition is true."""
        ((function, argument),) = condition.items()
        if function == "Condition":
            return self.holds(self.template["Conditions"][argument])
        if function == "Fn::Not":
            return not self.holds(argument[0])
        if function == "Fn::And":
            return all(self.holds(part) for part in argument)
        if function == "Fn::Or":
            return any(self.holds(part) for part in argument)
        if function == "Fn::Equals":
            return self.resolved(argument[0]) == self.resolved(argument[1])
        raise ValueError(f"a condition with {function}")

    def resolved(self, node):
        """The node with everything decided that the parameters decide."""
        if isinstance(node, list):
            return [value for value in map(self.resolved, node) if value is not NO_VALUE]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((function, argument),) = node.items()
            if function == "Ref" or function.startswith("Fn::"):
                return self.called(function, argument)
        return {key: value for key, value in ((key, self.resolved(value)) for key, value in node.items()) if value is not NO_VALUE}

    def called(self, function, argument):
        """What a function gives; the function itself where that needs a resource."""
        if function == "Ref":
            return NO_VALUE if argument == "AWS::NoValue" else self.values.get(argument, {"Ref": argument})
        if function == "Fn::If":
            return self.resolved(argument[1] if self.holds({"Condition": argument[0]}) else argument[2])
        if function == "Fn::Sub":
            return self.substituted(*(argument if isinstance(argument, list) else (argument, {})))
        argument = self.resolved(argument)
        if function == "Fn::Join" and all(isinstance(part, str) for part in argument[1]):
            return argument[0].join(argument[1])
        if function == "Fn::Split" and isinstance(argument[1], str):
            return argument[1].split(argument[0])
        if function == "Fn::Select" and isinstance(argument[1], list):
            return argument[1][int(argument[0])]
        return {function: argument}

    def substituted(self, text, local):
        """`${Name}` is replaced where its value is known, and left where it is a resource's."""
        known = self.values | self.resolved(local)
        text = re.sub(r"\$\{([A-Za-z0-9:]+)\}", lambda found: str(known.get(found[1], found[0])), text)
        return {"Fn::Sub": text} if "${" in text else text


def conditions(template, values):
    """Whether each condition of the template holds for these parameters."""
    resolver = Resolver(template, values)
    return {name: resolver.holds({"Condition": name}) for name in template["Conditions"]}


def references(node):
    """The names that a part of a stack refers to."""
    if isinstance(node, list):
        return {name for value in node for name in references(value)}
    if not isinstance(node, dict):
        return set()
    found = set()
    for key, value in node.items():
        if key == "Ref":
            found.add(value)
        elif key == "Fn::GetAtt":
            found.add(value[0] if isinstance(value, list) else value.split(".")[0])
        elif key == "Fn::Sub":
            found.update(re.findall(r"\$\{([A-Za-z0-9]+)(?:\.[A-Za-z0-9.]+)?\}", value))
        elif key == "DependsOn":
            found.update([value] if isinstance(value, str) else value)
        else:
            found |= references(value)
    return found
