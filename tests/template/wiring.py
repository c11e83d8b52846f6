"""What has to hang together in every stack, and what no linter looks at: whoever calls the function may call it, what cannot be delivered is kept, what is
encrypted is so in one way, every alarm is about a metric that exists, and no property stands there that nobody decided about. What the policies allow is another
question, which tests/policy answers."""

import json
import re

import facts
import stacks

FUNCTION = {"Fn::GetAtt": ["RestartFunction", "Arn"]}
QUEUE = {"Fn::GetAtt": ["FailedEvents", "Arn"]}
KEY = {"Fn::GetAtt": ["Key", "Arn"]}

# How late a metric may come after what it tells about is over, in seconds: a guess with room to spare, for which nobody gives a number.
LATE = 600

# What a stack tells whoever asks for it: the commands of the documents rest on these.
OUTPUTS = {
    "FunctionName": {"Ref": "RestartFunction"},
    "FunctionArn": FUNCTION,
    "FunctionRoleName": {"Ref": "FunctionRole"},
    "DocumentName": {"Ref": "RestartDocument"},
    "WindowsDocumentName": {"Ref": "WindowsRestartDocument"},
    "LogGroupName": {"Ref": "FunctionLogs"},
    "FailedEventsQueueUrl": {"Ref": "FailedEvents"},
}

# Another partition of AWS, in which no ARN begins as in the usual one.
CHINA = {"AWS::Partition": "aws-cn", "AWS::Region": "cn-north-1", "AWS::URLSuffix": "amazonaws.com.cn"}
# Of the services that use the key, the one whose name tells its region and partition.
CHINAS_LOGS = {"Service": "logs.cn-north-1.amazonaws.com.cn"}

# What every alarm has of its own.
ALARM = ["AlarmActions", "AlarmDescription", "Dimensions.Name", "Dimensions.Value", "MetricName", "Namespace", "OKActions", "Statistic", "Threshold"]

# A property with any value: another check looks at it, here, in this folder or in tests/policy, or it only tells people something.
ANY = object()

# What was decided about the properties of each type, or of one resource that is an exception: the value that must stand there, or ANY, for one that may. Every other property is a problem until somebody
# has decided about it, since many of those that are left can keep an event, a message or an alarm back. A dot leads into a property, through lists too.
DECIDED = {
    "AWS::Lambda::Function": {
        **dict.fromkeys(["Architectures", "Code", "Description", "Environment.Variables", "Handler", "MemorySize", "Role", "Runtime", "Tags", "Timeout"], ANY),
        "LoggingConfig.LogGroup": ANY,
        # Without it, Lambda's own lines are no JSON, and filters on fields miss them.
        "LoggingConfig.LogFormat": "JSON",
    },
    "AWS::Lambda::EventInvokeConfig": {
        "FunctionName": ANY,
        # The rules and the schedule call the function without a version.
        "Qualifier": "$LATEST",
        # Lambda's most, as is the age of six hours that stands nowhere: throttling may last.
        "MaximumRetryAttempts": 2,
        "DestinationConfig.OnFailure.Destination": ANY,
    },
    "AWS::Lambda::Permission": {
        "Action": "lambda:InvokeFunction",
        "FunctionName": {"Ref": "RestartFunction"},
        "Principal": "events.amazonaws.com",
        "SourceArn": ANY,
    },
    # On the default bus, where AWS's services send to; on; repeated for 24 hours; and the event stays as it is.
    "AWS::Events::Rule": dict.fromkeys(["Description", "EventPattern", "Targets.Id", "Targets.Arn", "Targets.DeadLetterConfig.Arn"], ANY),
    # On, for ever, in UTC, and repeated for 24 hours.
    "AWS::Scheduler::ScheduleGroup": {},
    "AWS::Scheduler::Schedule": {
        **dict.fromkeys(["Description", "GroupName", "Target.Arn", "Target.DeadLetterConfig.Arn", "Target.Input", "Target.RoleArn"], ANY),
        "ScheduleExpression": stacks.SCHEDULE["ScheduleExpression"],
        "FlexibleTimeWindow.Mode": "OFF",
    },
    "AWS::IAM::Role": dict.fromkeys(["AssumeRolePolicyDocument", "Description", "PermissionsBoundary", "Policies"], ANY),
    "AWS::SNS::Topic": dict.fromkeys(["DisplayName", "KmsMasterKeyId"], ANY),
    # Without a filter: whoever gives an address wants every message, and the alarms.
    "AWS::SNS::Subscription": dict.fromkeys(["Endpoint", "Protocol", "TopicArn"], ANY),
    "AWS::SQS::Queue": {
        # 14 days, which is SQS's most.
        "MessageRetentionPeriod": 14 * 24 * 60 * 60,
        "KmsMasterKeyId": ANY,
        "SqsManagedSseEnabled": ANY,
    },
    "AWS::SQS::QueuePolicy": dict.fromkeys(["PolicyDocument", "Queues"], ANY),
    "AWS::Logs::LogGroup": dict.fromkeys(["KmsKeyId", "RetentionInDays"], ANY),
    "AWS::KMS::Key": {"Description": ANY, "EnableKeyRotation": True, "KeyPolicy": ANY},
    "AWS::CloudWatch::Alarm": {
        **dict.fromkeys(ALARM, ANY),
        # What happens once is told. The function is idle most of the time, so that an alarm which waits for several bad periods would hardly ever go off.
        "Period": 300,
        "EvaluationPeriods": ANY,
        "DatapointsToAlarm": 1,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "notBreaching",
    },
    # About the opposite: that nothing happened in any of the days.
    "SilenceAlarm": {
        **dict.fromkeys(ALARM, ANY),
        "Period": 86400,
        "EvaluationPeriods": stacks.EXPECTED["ExpectEventsWithinDays"],
        "DatapointsToAlarm": stacks.EXPECTED["ExpectEventsWithinDays"],
        "ComparisonOperator": "LessThanThreshold",
        "TreatMissingData": "breaching",
    },
    # Without a name, under which CloudFormation could not replace it.
    "AWS::SSM::Document": dict.fromkeys(["Content", "DocumentType", "Tags", "UpdateMethod"], ANY),
}

# Metrics, each with the one dimension under which the service publishes it, the type of the resource that the dimension names, and the statistic that tells
# whether it happened at all. Each needs an alarm where there is such a resource. Sources:
# https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
# https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-monitoring.html (RuleName alone: the default bus)
# https://docs.aws.amazon.com/scheduler/latest/UserGuide/monitoring-cloudwatch.html
METRICS = {
    ("AWS/Lambda", "Errors"): ("FunctionName", "AWS::Lambda::Function", "Sum"),
    ("AWS/Lambda", "Throttles"): ("FunctionName", "AWS::Lambda::Function", "Sum"),
    ("AWS/Lambda", "Duration"): ("FunctionName", "AWS::Lambda::Function", "Maximum"),
    ("AWS/Lambda", "DestinationDeliveryFailures"): ("FunctionName", "AWS::Lambda::Function", "Sum"),
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): ("QueueName", "AWS::SQS::Queue", "Maximum"),
    ("AWS/Events", "InvocationsFailedToBeSentToDlq"): ("RuleName", "AWS::Events::Rule", "Sum"),
    ("AWS/Scheduler", "InvocationsFailedToBeSentToDeadLetterCount"): ("ScheduleGroup", "AWS::Scheduler::ScheduleGroup", "Sum"),
}
# The one about what should happen, and needs an alarm only where that is expected.
EXPECTED_METRIC = {("AWS/Events", "Invocations"): METRICS["AWS/Events", "InvocationsFailedToBeSentToDlq"]}


def check(finder, source):
    """Every stack that the template can become hangs together."""
    reserve = facts.read()["reserveSeconds"]
    for values in stacks.every_set():
        check_stack(finder, stacks.stack(source, values), values, reserve)
    for values in ({"CustomerKey": "true"}, {"CustomerKey": "true"} | stacks.SCHEDULE | stacks.DEPLOYMENTS):
        check_partition(finder, stacks.stack(source, values, CHINA))


def check_stack(finder, stack, values, reserve):
    """One stack, the parameters that it is made with, and how many seconds before its timeout the function stops its work."""
    resources = stack["Resources"]
    missing = stacks.references([resources, stack["Outputs"]]) - set(resources)
    finder.expect(not missing, f"with {values}, the stack refers to {sorted(missing)}, which it has not")
    check_properties(finder, resources)
    wanted = OUTPUTS | {"TopicArn": values.get("TopicArn", {"Ref": "Topic"})}
    outputs = {name: output["Value"] for name, output in stack["Outputs"].items()}
    finder.expect(outputs == wanted, f"with {values}, the stack's outputs are {outputs}, not {wanted}")
    check_function(finder, resources)
    rules = of_type(resources, "AWS::Events::Rule")
    finder.expect(len(rules) == 1, f"with {values}, there are {len(rules)} rules")
    for name, rule in rules.items():
        check_rule(finder, resources, name, rule)
    for name, permission in of_type(resources, "AWS::Lambda::Permission").items():
        finder.expect("SourceArn" in permission, f"{name} lets the rules of anybody call the function")
    schedules = of_type(resources, "AWS::Scheduler::Schedule")
    finder.expect(len(schedules) == ("ScheduleExpression" in values), f"with {values}, there are {len(schedules)} schedules")
    for name, schedule in schedules.items():
        check_schedule(finder, name, schedule)
    for name, role in of_type(resources, "AWS::IAM::Role").items():
        boundary, wanted = role.get("PermissionsBoundary"), values.get("PermissionsBoundaryArn")
        finder.expect(boundary == wanted, f"the boundary of {name} is {boundary}, not {wanted}")
    check_encryption(finder, resources, KEY if "CustomerKey" in values else None)
    subscriptions = [(told["Protocol"], told["Endpoint"], told["TopicArn"]) for told in of_type(resources, "AWS::SNS::Subscription").values()]
    wanted = [("email", values["AlertEmail"], {"Ref": "Topic"})] if "AlertEmail" in values else []
    finder.expect(subscriptions == wanted, f"the subscriptions are {subscriptions}, not {wanted}")
    check_alarms(finder, resources, values, reserve)


def of_type(resources, kind):
    """The properties of the resources of a type, by name."""
    return {name: resource.get("Properties", {}) for name, resource in resources.items() if resource["Type"] == kind}


def check_properties(finder, resources):
    """Every property was decided about, and has the value that was decided on; what is taken out of a stack goes, as docs/deploy.md says."""
    for name, resource in resources.items():
        for policy in ("DeletionPolicy", "UpdateReplacePolicy"):
            finder.expect(resource.get(policy, "Delete") == "Delete", f"{name} has the {policy} {resource.get(policy)}: it would be left behind")
        decided = DECIDED.get(name, DECIDED.get(resource["Type"]))
        if not finder.expect(decided is not None, f"{name} is an {resource['Type']}: decide about its properties in DECIDED of tests/template/wiring.py"):
            continue
        found = {}
        for path, value in properties(resource.get("Properties", {}), decided):
            found.setdefault(path, []).append(value)
            finder.expect(path in decided, f"{name} has the property {path}: decide about it in DECIDED of tests/template/wiring.py, or take it out")
        for path, wanted in decided.items():
            values = found.get(path, [])
            finder.expect(wanted is ANY or (values and all(value == wanted for value in values)), f"{path} of {name} is {values}, not {wanted!r}")


def properties(node, decided, path=""):
    """(path, value) of each property: as deep as was decided, and as a whole where nothing was."""
    deeper = not path or any(known.startswith(f"{path}.") for known in decided)
    if deeper and isinstance(node, dict):
        for name, value in node.items():
            yield from properties(value, decided, f"{path}.{name}" if path else name)
    elif deeper and isinstance(node, list):
        for part in node:
            yield from properties(part, decided, path)
    else:
        yield path, node


def check_partition(finder, stack):
    """No ARN names the usual partition in a stack of another one. What runs on the instances has ARNs of its own. The key is for the logs of that partition."""
    principals = [statement["Principal"] for statement in stack["Resources"]["Key"]["Properties"]["KeyPolicy"]["Statement"]]
    finder.expect(CHINAS_LOGS in principals, f"the key lets {principals} use it in every partition, and not CloudWatch's logs in China")
    for name, resource in stack["Resources"].items():
        if resource["Type"] != "AWS::SSM::Document":
            found = re.findall(r"arn:aws:[^\"]*", json.dumps(resource))
            finder.expect(not found, f"{name} names {found} in every partition")


def check_function(finder, resources):
    """The function has the stack's role and log, and what it failed at goes into the queue."""
    function = resources["RestartFunction"]["Properties"]
    finder.expect(function["Role"] == {"Fn::GetAtt": ["FunctionRole", "Arn"]}, f"the function's role is {function['Role']}")
    group = function.get("LoggingConfig", {}).get("LogGroup")
    finder.expect(group == {"Ref": "FunctionLogs"}, f"the function logs to {group}")
    configs = [config for config in of_type(resources, "AWS::Lambda::EventInvokeConfig").values() if config["FunctionName"] == {"Ref": "RestartFunction"}]
    kept = [config.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination") for config in configs]
    finder.expect(kept == [QUEUE], f"what the function failed at goes to {kept}, not into the queue")


def check_rule(finder, resources, name, rule):
    """The rule hands the event over to the function, which it may call; what it cannot deliver is put into the queue."""
    targets = rule.get("Targets", [])
    finder.expect([target["Arn"] for target in targets] == [FUNCTION], f"{name} calls {[target['Arn'] for target in targets]}, not the function")
    for target in targets:
        finder.expect(target.get("DeadLetterConfig") == {"Arn": QUEUE}, f"what {name} cannot deliver is not put into the queue")
    arn = {"Fn::GetAtt": [name, "Arn"]}
    permitted = [permission.get("SourceArn") for permission in of_type(resources, "AWS::Lambda::Permission").values()]
    finder.expect(arn in permitted, f"{name} may not call the function: no permission is for it")
    policies = [policy for policy in of_type(resources, "AWS::SQS::QueuePolicy").values() if {"Ref": "FailedEvents"} in policy["Queues"]]
    finder.expect(len(policies) == 1, f"the queue has {len(policies)} policies: {name} needs one to put something into it")


def check_schedule(finder, name, schedule):
    """The schedule calls the function with a request that it reads; what cannot be delivered is put into the queue."""
    finder.expect(schedule.get("GroupName") == {"Ref": "ScheduleGroup"}, f"{name} is in the group {schedule.get('GroupName')}, whose losses no alarm tells")
    target = schedule["Target"]
    finder.expect(target["Arn"] == FUNCTION, f"{name} calls {target['Arn']}, not the function")
    finder.expect(target.get("DeadLetterConfig") == {"Arn": QUEUE}, f"what {name} cannot deliver is not put into the queue")
    finder.expect(target["RoleArn"] == {"Fn::GetAtt": ["ScheduleRole", "Arn"]}, f"{name} has the role {target['RoleArn']}")
    # With the time that was meant, a delivery that is repeated is the same order.
    wanted = {
        "application": stacks.SCHEDULE["ScheduleApplication"],
        "deploymentGroup": stacks.SCHEDULE["ScheduleDeploymentGroup"],
        "time": "<aws.scheduler.scheduled-time>",
    }
    request = json.loads(target["Input"])
    finder.expect(request == wanted, f"{name} sends {request}, not {wanted}")


def check_encryption(finder, resources, key):
    """The topic, the queue and the log are under the stack's key, or none of them is under any."""
    finder.expect(("Key" in resources) == (key is not None), f"the stack has a key: {'Key' in resources}, it should: {key is not None}")
    queue = resources["FailedEvents"]["Properties"]
    finder.expect(("KmsMasterKeyId" in queue) != ("SqsManagedSseEnabled" in queue), "the queue is encrypted twice, which SQS refuses, or not at all")
    found = {"the queue": queue.get("KmsMasterKeyId"), "the log": resources["FunctionLogs"]["Properties"].get("KmsKeyId")}
    if "Topic" in resources:
        found["the topic"] = resources["Topic"]["Properties"].get("KmsMasterKeyId")
    for what, under in found.items():
        finder.expect(under == key, f"{what} is encrypted with {under}, not {key}")


def check_alarms(finder, resources, values, reserve):
    """Each alarm is about a metric that exists for a resource of this stack, and tells a topic when it begins and when it ends; each metric has an alarm."""
    topic = values.get("AlarmTopicArn", values.get("TopicArn", {"Ref": "Topic"}))
    alarms = of_type(resources, "AWS::CloudWatch::Alarm")
    timeout = resources["RestartFunction"]["Properties"]["Timeout"]
    finder.expect(("SilenceAlarm" in alarms) == ("ExpectEventsWithinDays" in values), f"with {values}, the alarms are {sorted(alarms)}")
    for name, alarm in alarms.items():
        for actions in ("AlarmActions", "OKActions"):
            finder.expect(alarm.get(actions) == [topic], f"with {values}, the {actions} of {name} are {alarm.get(actions)}")
        check_metric(finder, resources, name, alarm)
        if name == "SilenceAlarm":
            finder.expect(alarm.get("Threshold") == 1, f"{name} waits for less than {alarm.get('Threshold')}, not 1")
            continue
        # A duration, in milliseconds, that the function reaches only when it does not end by itself. Of everything else, one is too many.
        above, below = (1000 * (timeout - reserve), 1000 * timeout) if alarm.get("MetricName") == "Duration" else (0, 2)
        threshold = alarm.get("Threshold")
        # Lambda dates a metric back to the start of the invocation: an alarm that does not look back so far never sees that of a long one.
        # https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-view.html
        looks_back = alarm.get("Period", 0) * alarm.get("EvaluationPeriods", 0)
        finder.expect(looks_back >= timeout + LATE, f"{name} looks back for {looks_back} s: too short for an invocation of {timeout} s")
        finder.expect(threshold is not None and above < threshold < below, f"{name} waits for {threshold}, which should lie between {above} and {below}")
    wanted = {metric for metric, (_, kind, _) in METRICS.items() if of_type(resources, kind)}
    unwatched = wanted - {(alarm.get("Namespace"), alarm.get("MetricName")) for alarm in alarms.values()}
    finder.expect(not unwatched, f"no alarm watches {sorted(unwatched)}")


def check_metric(finder, resources, name, alarm):
    """A metric exists under this dimension, and the dimension names a resource of the right type."""
    key = (alarm.get("Namespace"), alarm.get("MetricName"))
    known = METRICS if name != "SilenceAlarm" else EXPECTED_METRIC
    if not finder.expect(key in known, f"{name} watches {key}, a metric that is not known here"):
        return
    dimension, kind, statistic = known[key]
    finder.expect(alarm.get("Statistic") == statistic, f"{name} takes the {alarm.get('Statistic')} of {key[1]}, not the {statistic}")
    found = [(part["Name"], part["Value"]) for part in alarm.get("Dimensions", [])]
    # A queue's reference is its address; those of the others are their names.
    valid = [{"Fn::GetAtt": [resource, "QueueName"]} if kind == "AWS::SQS::Queue" else {"Ref": resource} for resource in of_type(resources, kind)]
    finder.expect(found in [[(dimension, value)] for value in valid], f"{name} watches {key[1]} of {found}, which nobody publishes")
