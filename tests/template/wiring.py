"""What has to hang together in every stack, and what no linter looks at: whoever calls the function may call it, what cannot be delivered is kept, what is
encrypted is so in one way, and every alarm is about a metric that exists. What the policies allow is another question, which tests/policy answers."""

import json

import stacks

FUNCTION = {"Fn::GetAtt": ["RestartFunction", "Arn"]}
QUEUE = {"Fn::GetAtt": ["FailedEvents", "Arn"]}
KEY = {"Fn::GetAtt": ["Key", "Arn"]}

# Fields of a request that the function reads (README, "What starts it").
REQUEST = {"application", "deploymentGroup", "deploymentId", "region", "time", "dryRun"}

# Metrics, each with the one dimension under which the service publishes it, the type of the resource that the dimension names, and the statistic that tells
# whether it happened at all. Without an alarm on any of them, something could go wrong in silence. Sources:
# https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
# https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-monitoring.html (RuleName alone: the default bus)
METRICS = {
    ("AWS/Lambda", "Errors"): ("FunctionName", "AWS::Lambda::Function", "Sum"),
    ("AWS/Lambda", "Throttles"): ("FunctionName", "AWS::Lambda::Function", "Sum"),
    ("AWS/Lambda", "Duration"): ("FunctionName", "AWS::Lambda::Function", "Maximum"),
    ("AWS/Lambda", "DestinationDeliveryFailures"): ("FunctionName", "AWS::Lambda::Function", "Sum"),
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"): ("QueueName", "AWS::SQS::Queue", "Maximum"),
    ("AWS/Events", "InvocationsFailedToBeSentToDlq"): ("RuleName", "AWS::Events::Rule", "Sum"),
}


def check(finder, translation):
    """Every stack that the template can become hangs together."""
    for values in stacks.every_set():
        check_stack(finder, stacks.stack(translation, values), values)


def check_stack(finder, stack, values):
    """One stack, and the parameters that it is made with."""
    resources = stack["Resources"]
    missing = stacks.references([resources, stack["Outputs"]]) - set(resources)
    finder.expect(not missing, f"with {values}, the stack refers to {sorted(missing)}, which it has not")
    check_function(finder, resources)
    rules = of_type(resources, "AWS::Events::Rule")
    finder.expect(len(rules) == 1, f"with {values}, there are {len(rules)} rules")
    for name, rule in rules.items():
        check_rule(finder, resources, name, rule)
    for name, permission in of_type(resources, "AWS::Lambda::Permission").items():
        check_permission(finder, name, permission)
    schedules = of_type(resources, "AWS::Scheduler::Schedule")
    finder.expect(len(schedules) == ("ScheduleExpression" in values), f"with {values}, there are {len(schedules)} schedules")
    for name, schedule in schedules.items():
        check_schedule(finder, name, schedule)
    check_encryption(finder, resources, KEY if "CustomerKey" in values else None)
    subscriptions = [(told["Protocol"], told["Endpoint"], told["TopicArn"]) for told in of_type(resources, "AWS::SNS::Subscription").values()]
    wanted = [("email", values["AlertEmail"], {"Ref": "Topic"})] if "AlertEmail" in values else []
    finder.expect(subscriptions == wanted, f"the subscriptions are {subscriptions}, not {wanted}")
    check_alarms(finder, resources, values)


def of_type(resources, kind):
    """The properties of the resources of a type, by name."""
    return {name: resource["Properties"] for name, resource in resources.items() if resource["Type"] == kind}


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
    """The rule is on and hands the event over to the function as it is, which it may call; what it cannot deliver is put into the queue."""
    finder.expect(rule.get("State", "ENABLED") == "ENABLED", f"{name} is off")
    finder.expect("EventBusName" not in rule, f"{name} listens on another bus than AWS's services send to")
    targets = rule.get("Targets", [])
    finder.expect([target["Arn"] for target in targets] == [FUNCTION], f"{name} calls {[target['Arn'] for target in targets]}, not the function")
    for target in targets:
        finder.expect(not {"Input", "InputPath", "InputTransformer"} & set(target), f"{name} changes the event")
        finder.expect(target.get("DeadLetterConfig") == {"Arn": QUEUE}, f"what {name} cannot deliver is not put into the queue")
    arn = {"Fn::GetAtt": [name, "Arn"]}
    permitted = [permission.get("SourceArn") for permission in of_type(resources, "AWS::Lambda::Permission").values()]
    finder.expect(arn in permitted, f"{name} may not call the function: no permission is for it")
    policies = [policy for policy in of_type(resources, "AWS::SQS::QueuePolicy").values() if {"Ref": "FailedEvents"} in policy["Queues"]]
    finder.expect(len(policies) == 1, f"the queue has {len(policies)} policies: {name} needs one to put something into it")


def check_permission(finder, name, permission):
    """A permission is for a rule of this stack, to call the function."""
    finder.expect(permission["Action"] == "lambda:InvokeFunction", f"{name} permits {permission['Action']}")
    finder.expect(permission["FunctionName"] == {"Ref": "RestartFunction"}, f"{name} is about {permission['FunctionName']}")
    finder.expect(permission["Principal"] == "events.amazonaws.com", f"{name} is for {permission['Principal']}")
    finder.expect("SourceArn" in permission, f"{name} lets the rules of anybody call the function")


def check_schedule(finder, name, schedule):
    """The schedule calls the function with a request that it reads; what cannot be delivered is put into the queue."""
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
    finder.expect(wanted.items() <= request.items() and set(request) <= REQUEST, f"{name} sends {request}")


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


def check_alarms(finder, resources, values):
    """Each alarm is about a metric that exists for a resource of this stack, tells a topic, and is quiet while nothing happens; nothing goes unwatched."""
    topic = values.get("AlarmTopicArn", values.get("TopicArn", {"Ref": "Topic"}))
    alarms = of_type(resources, "AWS::CloudWatch::Alarm")
    for name, alarm in alarms.items():
        finder.expect(alarm.get("AlarmActions") == [topic], f"with {values}, {name} tells {alarm.get('AlarmActions')}")
        finder.expect(alarm.get("ActionsEnabled", True) is True, f"{name} is mute")
        finder.expect(alarm.get("TreatMissingData") == "notBreaching", f"{name} does not rest while nothing happens")
        finder.expect(alarm.get("ComparisonOperator") == "GreaterThanOrEqualToThreshold", f"{name} compares by {alarm.get('ComparisonOperator')}")
        check_metric(finder, resources, name, alarm)
        # In milliseconds. Of everything else, one is too many.
        limit = 1000 * resources["RestartFunction"]["Properties"]["Timeout"] if alarm.get("MetricName") == "Duration" else 2
        finder.expect(0 < alarm["Threshold"] < limit, f"{name} waits for {alarm['Threshold']}, and should for less than {limit}")
    unwatched = set(METRICS) - {(alarm.get("Namespace"), alarm.get("MetricName")) for alarm in alarms.values()}
    finder.expect(not unwatched, f"no alarm watches {sorted(unwatched)}")


def check_metric(finder, resources, name, alarm):
    """A metric exists under this dimension, and the dimension names a resource of the right type."""
    key = (alarm.get("Namespace"), alarm.get("MetricName"))
    if not finder.expect(key in METRICS, f"{name} watches {key}, a metric that is not known here"):
        return
    dimension, kind, statistic = METRICS[key]
    finder.expect(alarm.get("Statistic") == statistic, f"{name} takes the {alarm.get('Statistic')} of {key[1]}, not the {statistic}")
    found = [(part["Name"], part["Value"]) for part in alarm.get("Dimensions", [])]
    # A queue's reference is its address; those of the others are their names.
    valid = [{"Fn::GetAtt": [resource, "QueueName"]} if kind == "AWS::SQS::Queue" else {"Ref": resource} for resource in of_type(resources, kind)]
    finder.expect(found in [[(dimension, value)] for value in valid], f"{name} watches {key[1]} of {found}, which nobody publishes")
