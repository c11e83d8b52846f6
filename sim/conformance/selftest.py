#!/usr/bin/env python3
"""Proves that check_transcripts.py can fail: correct exchanges pass, seeded bad ones do not.

Requests are serialised by botocore itself; answers are written out here. Each seeded
fault has to be reported with the words given for it, so that one fault cannot hide
behind another. Exit status 1 when any expectation does not hold.
"""

import copy
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

import botocore.serialize
import botocore.session

from check_transcripts import OPERATIONS, Checker, compile_pattern, main

COMMAND = "5d3a8b1e-7c42-4f0b-9a6d-2e8f1c0b7a94"
EXECUTION = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"
REQUEST_ID = "7b1f0c52-93c4-4b7e-8a51-c0ffee000001"
TOPIC = "arn:aws:sns:eu-west-1:123456789012:agent-restarts"
NOW = 1764025200.5
INSTANCES = [f"i-{n:017x}" for n in range(1, 61)]
XML = {
    "autoscaling": "http://autoscaling.amazonaws.com/doc/2011-01-01/",
    "sns": "http://sns.amazonaws.com/doc/2010-03-31/",
    "ec2": "http://ec2.amazonaws.com/doc/2016-11-15/",
}
SESSION = botocore.session.Session()


# ------------------------------------------------------------------------- good exchanges


def request_of(service, operation, params):
    """A recorded request, as botocore puts it on the wire."""
    model = SESSION.get_service_model(service)
    serializer = botocore.serialize.create_serializer(model.metadata["protocol"], False)
    made = serializer.serialize_to_request(params, model.operation_model(operation))
    body = made["body"]
    body = urlencode(body) if isinstance(body, dict) else body.decode()
    headers = {name: str(value) for name, value in made["headers"].items()}
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20251125/eu-west-1/{model.signing_name}/aws4_request, "
        "SignedHeaders=host, Signature=00")
    return {"method": "POST", "path": "/", "headers": headers, "body": body}


def json_response(members, status=200):
    headers = {"content-type": "application/x-amz-json-1.1", "x-amzn-RequestId": REQUEST_ID}
    return {"status": status, "headers": headers, "body": json.dumps(members)}


def xml_response(body, status=200):
    headers = {"content-type": "text/xml", "x-amzn-RequestId": REQUEST_ID}
    return {"status": status, "headers": headers, "body": body}


def xml_answer(service, operation, inner):
    return xml_response(
        f'<?xml version="1.0"?>\n<{operation}Response xmlns="{XML[service]}">\n'
        f"  <{operation}Result>{inner}</{operation}Result>\n"
        f"  <ResponseMetadata><RequestId>{REQUEST_ID}</RequestId></ResponseMetadata>\n"
        f"</{operation}Response>")


def xml_error(service, code, status=400, party="Sender"):
    return xml_response(
        f'<ErrorResponse xmlns="{XML[service]}"><Error><Type>{party}</Type><Code>{code}</Code>'
        f"<Message>it is so</Message></Error><RequestId>{REQUEST_ID}</RequestId></ErrorResponse>", status)


def ec2_answer(inner):
    return xml_response(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<DescribeInstancesResponse xmlns="{XML["ec2"]}">\n'
        f"    <requestId>{REQUEST_ID}</requestId>\n{inner}\n</DescribeInstancesResponse>")


def ec2_error(code, status=400):
    return xml_response(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Response><Errors><Error><Code>{code}</Code><Message>it is so</Message>'
        f"</Error></Errors><RequestID>{REQUEST_ID}</RequestID></Response>", status)


def exchange(service, operation, params, response):
    return {
        "service": service, "region": "eu-west-1", "operation": operation,
        "request": request_of(service, operation, params), "response": response,
    }


def plugin(name, code, output):
    status = "Failed" if code else "Success"
    return {
        "Name": name, "Status": status, "StatusDetails": status, "ResponseCode": code,
        "ResponseStartDateTime": NOW + 1, "ResponseFinishDateTime": NOW + 75, "Output": output,
        "StandardOutputUrl": "", "StandardErrorUrl": "",
        "OutputS3Region": "eu-west-1", "OutputS3BucketName": "", "OutputS3KeyPrefix": "",
    }


def deployment_info(deployment):
    return {
        "applicationName": "shop", "deploymentGroupName": "shop-web", "deploymentId": deployment,
        "deploymentConfigName": "CodeDeployDefault.OneAtATime", "status": "Succeeded",
        "createTime": NOW - 300, "startTime": NOW - 299, "completeTime": NOW, "creator": "user",
        "deploymentOverview": {"Pending": 0, "InProgress": 0, "Succeeded": 3, "Failed": 0, "Skipped": 0, "Ready": 0},
        "ignoreApplicationStopFailures": False, "computePlatform": "Server",
        "deploymentStyle": {"deploymentType": "IN_PLACE", "deploymentOption": "WITHOUT_TRAFFIC_CONTROL"},
    }


def good_exchanges():
    """One correct exchange of each operation, named after it."""
    action = {
        "pipelineExecutionId": EXECUTION, "actionExecutionId": COMMAND, "pipelineVersion": 12,
        "stageName": "Release", "actionName": "to-web", "startTime": NOW - 40, "lastUpdateTime": NOW,
        "status": "Succeeded",
        "input": {
            "actionTypeId": {"category": "Deploy", "owner": "AWS", "provider": "CodeDeploy", "version": "1"},
            "configuration": {"ApplicationName": "shop", "DeploymentGroupName": "shop-web"},
            "resolvedConfiguration": {"ApplicationName": "shop", "DeploymentGroupName": "shop-web"},
            "roleArn": "arn:aws:iam::123456789012:role/pipeline", "region": "eu-west-1",
            "inputArtifacts": [{"name": "Source", "s3location": {"bucket": "artifacts", "key": "shop/1"}}],
            "namespace": "Deployed",
        },
        "output": {
            "outputArtifacts": [], "outputVariables": {},
            "executionResult": {"externalExecutionId": "d-ABCDEF123", "externalExecutionSummary": "done"},
        },
    }
    group = {
        "applicationName": "shop", "deploymentGroupName": "shop-web", "deploymentGroupId": COMMAND,
        "ec2TagFilters": [{"Key": "role", "Value": "web", "Type": "KEY_AND_VALUE"}],
        "autoScalingGroups": [{"name": "web", "hook": "CodeDeploy-web"}],
        "serviceRoleArn": "arn:aws:iam::123456789012:role/deploy", "computePlatform": "Server",
        "deploymentStyle": {"deploymentType": "IN_PLACE", "deploymentOption": "WITHOUT_TRAFFIC_CONTROL"},
        "outdatedInstancesStrategy": "UPDATE", "terminationHookEnabled": False,
    }
    node = {
        "InstanceId": INSTANCES[0], "PingStatus": "Online", "LastPingDateTime": NOW - 3, "AgentVersion": "3.3.987.0",
        "IsLatestVersion": True, "PlatformType": "Linux", "PlatformName": "Amazon Linux", "PlatformVersion": "2023",
        "ResourceType": "EC2Instance", "IPAddress": "10.0.0.1", "ComputerName": "ip-10-0-0-1.internal",
        "SourceId": INSTANCES[0], "SourceType": "AWS::EC2::Instance",
    }
    command = {
        "CommandId": COMMAND, "DocumentName": "restart-agent", "DocumentVersion": "$LATEST", "Comment": "",
        "ExpiresAfter": NOW + 600, "Parameters": {"sentAt": ["1764025200"]}, "InstanceIds": INSTANCES[:2],
        "Targets": [], "RequestedDateTime": NOW, "Status": "Pending", "StatusDetails": "Pending",
        "OutputS3Region": "eu-west-1", "OutputS3BucketName": "", "OutputS3KeyPrefix": "",
        "MaxConcurrency": "100%", "MaxErrors": "100%", "TargetCount": 2, "CompletedCount": 0, "ErrorCount": 0,
        "DeliveryTimedOutCount": 0, "TimeoutSeconds": 120, "ServiceRole": "",
        "NotificationConfig": {"NotificationArn": "", "NotificationEvents": [], "NotificationType": ""},
        "CloudWatchOutputConfig": {"CloudWatchLogGroupName": "", "CloudWatchOutputEnabled": False},
    }
    line = json.dumps({"agentRestart": 1, "result": "agent-unhealthy", "code": 33, "detail": "poller comes and goes"})
    invocation = {
        "CommandId": COMMAND, "InstanceId": INSTANCES[0], "InstanceName": "", "Comment": "",
        "DocumentName": "restart-agent", "DocumentVersion": "$LATEST", "RequestedDateTime": NOW,
        "Status": "Failed", "StatusDetails": "Failed", "StandardOutputUrl": "", "StandardErrorUrl": "",
        "CommandPlugins": [
            plugin("linux", 33, line + "\n\n----------ERROR-------\nfailed to run commands: exit status 33")],
        "ServiceRole": "", "NotificationConfig": command["NotificationConfig"],
        "CloudWatchOutputConfig": command["CloudWatchOutputConfig"],
    }
    member = (
        f"<member><InstanceId>{INSTANCES[0]}</InstanceId><AvailabilityZone>eu-west-1a</AvailabilityZone>%s"
        "<LifecycleState>InService</LifecycleState><HealthStatus>Healthy</HealthStatus>"
        "<ProtectedFromScaleIn>false</ProtectedFromScaleIn></member>")
    scaling = (
        "<AutoScalingGroups><member><AutoScalingGroupName>web</AutoScalingGroupName><MinSize>0</MinSize>"
        "<MaxSize>9</MaxSize><DesiredCapacity>1</DesiredCapacity><DefaultCooldown>300</DefaultCooldown>"
        "<AvailabilityZones><member>eu-west-1a</member></AvailabilityZones><LoadBalancerNames/>"
        "<HealthCheckType>EC2</HealthCheckType>"
        f"<Instances>{member % ''}</Instances><CreatedTime>2025-11-01T00:00:00.123Z</CreatedTime>"
        "</member></AutoScalingGroups><NextToken>more</NextToken>")
    instances = (
        "<AutoScalingInstances>" + member % "<AutoScalingGroupName>web</AutoScalingGroupName>" + "</AutoScalingInstances>")
    machine = (
        "<item><instanceId>%s</instanceId><instanceState><code>16</code><name>running</name></instanceState>"
        "<launchTime>2025-11-01T00:00:00.000Z</launchTime><productCodes/></item>")
    reservations = (
        "<reservationSet><item><reservationId>r-0123456789abcdef0</reservationId><ownerId>123456789012</ownerId><groupSet/>"
        f"<instancesSet>{machine % INSTANCES[0]}{machine % INSTANCES[1]}</instancesSet></item>"
        "</reservationSet><nextToken>more</nextToken>")
    texts = {"DataType": "String", "StringValue": "attention"}
    bodies = json.dumps({"default": "one agent was not restarted", "sqs": "{}"})
    made = [
        ("codepipeline", "ListActionExecutions",
         {"pipelineName": "shop", "filter": {"pipelineExecutionId": EXECUTION}, "maxResults": 100},
         json_response({"actionExecutionDetails": [action], "nextToken": "more"})),
        ("codedeploy", "GetDeployment", {"deploymentId": "d-ABCDEF123"},
         json_response({"deploymentInfo": deployment_info("d-ABCDEF123")})),
        ("codedeploy", "BatchGetDeployments", {"deploymentIds": ["d-ABCDEF123"]},
         json_response({"deploymentsInfo": [deployment_info("d-ABCDEF123")]})),
        ("codedeploy", "GetDeploymentGroup", {"applicationName": "shop", "deploymentGroupName": "shop-web"},
         json_response({"deploymentGroupInfo": group})),
        ("codedeploy", "ListDeployments",
         {"applicationName": "shop", "deploymentGroupName": "shop-web", "includeOnlyStatuses": ["Created", "Ready"],
          "createTimeRange": {"start": 1764020000}},
         json_response({"deployments": ["d-ABCDEF123"]})),
        ("codedeploy", "ListDeploymentTargets",
         {"deploymentId": "d-ABCDEF123", "targetFilters": {"ServerInstanceLabel": ["Green"]}},
         json_response({"targetIds": INSTANCES[:3], "nextToken": "more"})),
        ("autoscaling", "DescribeAutoScalingGroups", {"AutoScalingGroupNames": ["web", "back"], "MaxRecords": 100},
         xml_answer("autoscaling", "DescribeAutoScalingGroups", scaling)),
        ("autoscaling", "DescribeAutoScalingInstances", {"InstanceIds": INSTANCES[:50]},
         xml_answer("autoscaling", "DescribeAutoScalingInstances", instances)),
        ("ssm", "DescribeInstanceInformation",
         {"Filters": [{"Key": "InstanceIds", "Values": INSTANCES[:50]}], "MaxResults": 50},
         json_response({"InstanceInformationList": [node], "NextToken": "more"})),
        ("ssm", "SendCommand",
         {"DocumentName": "restart-agent", "DocumentVersion": "$LATEST", "InstanceIds": INSTANCES[:2],
          "TimeoutSeconds": 120, "Parameters": {"sentAt": ["1764025200"]}, "MaxConcurrency": "100%", "MaxErrors": "100%"},
         json_response({"Command": command})),
        ("ssm", "ListCommandInvocations", {"CommandId": COMMAND, "Details": True, "MaxResults": 50},
         json_response({"CommandInvocations": [invocation]})),
        ("sns", "Publish",
         {"TopicArn": TOPIC, "Subject": "1 agent was not restarted", "Message": bodies, "MessageStructure": "json",
          "MessageAttributes": {"result": texts, "severity": texts}},
         xml_answer("sns", "Publish", f"<MessageId>{COMMAND}</MessageId>")),
        ("ec2", "DescribeInstances",
         {"Filters": [{"Name": "instance-id", "Values": INSTANCES[:12]}], "MaxResults": 1000, "NextToken": "more"},
         ec2_answer(reservations)),
    ]
    return {operation: exchange(service, operation, params, answer) for service, operation, params, answer in made}


GOOD = good_exchanges()


def with_answer(operation, response):
    changed = copy.deepcopy(GOOD[operation])
    changed["response"] = response
    return changed


def with_request(operation, params):
    changed = copy.deepcopy(GOOD[operation])
    changed["request"] = request_of(changed["service"], operation, params)
    return changed


def good_errors():
    """Correct errors: declared ones and common ones, in both protocols."""
    return {
        "declared, with a modelled text": with_answer(
            "SendCommand", json_response({"__type": "InvalidInstanceId", "Message": "not one of ours"}, 400)),
        "declared, without modelled members": with_answer(
            "GetDeployment", json_response({"__type": "DeploymentDoesNotExistException", "message": "none such"}, 400)),
        "declared fault": with_answer(
            "SendCommand", json_response({"__type": "InternalServerError", "Message": "sorry"}, 500)),
        "with a namespace": with_answer(
            "GetDeployment",
            json_response({"__type": "com.amazonaws.codedeploy#InvalidDeploymentIdException", "message": "odd"}, 400)),
        "throttled": with_answer(
            "SendCommand", json_response({"__type": "ThrottlingException", "message": "Rate exceeded"}, 400)),
        "unknown topic": with_answer("Publish", xml_error("sns", "NotFound", 404)),
        "bad token": with_answer("DescribeAutoScalingGroups", xml_error("autoscaling", "InvalidNextToken")),
        "common in XML": with_answer(
            "DescribeAutoScalingInstances", xml_error("autoscaling", "InternalFailure", 500, "Receiver")),
        "unknown id of EC2": with_answer("DescribeInstances", ec2_error("InvalidInstanceID.NotFound")),
        "denied by EC2": with_answer("DescribeInstances", ec2_error("UnauthorizedOperation", 403)),
        "throttled by EC2": with_answer("DescribeInstances", ec2_error("RequestLimitExceeded", 503)),
        "empty page of EC2": with_answer("DescribeInstances", ec2_answer("<reservationSet/><nextToken>more</nextToken>")),
        "no answer": with_answer("SendCommand", None),
        "empty list": with_request("DescribeAutoScalingGroups", {"AutoScalingGroupNames": []}),
    }


# ------------------------------------------------------------------------- seeded faults


def edited(operation, edit, side="response"):
    """The good exchange with its JSON body changed by `edit`."""
    changed = copy.deepcopy(GOOD[operation])
    body = json.loads(changed[side]["body"])
    edit(body)
    changed[side]["body"] = json.dumps(body)
    return changed


def replaced(operation, old, new, side="response"):
    """The good exchange with `old` replaced once in its body."""
    changed = copy.deepcopy(GOOD[operation])
    body = changed[side]["body"]
    assert old in body, f"{operation}: {old!r} is not in the {side}"
    changed[side]["body"] = body.replace(old, new, 1)
    return changed


def headed(operation, side, header, value):
    changed = copy.deepcopy(GOOD[operation])
    headers = changed[side]["headers"]
    for name in [name for name in headers if name.lower() == header.lower()]:
        del headers[name]
    if value is not None:
        headers[header] = value
    return changed


def put(*path_and_value):
    """An edit that sets a value at a path of keys and indexes."""
    *path, last, value = path_and_value

    def edit(body):
        for key in path:
            body = body[key]
        body[last] = value

    return edit


def remove(*path):
    def edit(body):
        for key in path[:-1]:
            body = body[key]
        del body[path[-1]]

    return edit


def rename(new, *path):
    def edit(body):
        for key in path[:-1]:
            body = body[key]
        body[new] = body.pop(path[-1])

    return edit


def foreign(service, operation):
    changed = copy.deepcopy(GOOD["SendCommand"])
    changed["service"], changed["operation"] = service, operation
    return changed


def bad_requests():
    invocation, node = "ListCommandInvocations", "DescribeInstanceInformation"
    publish, scaling, machines = "Publish", "DescribeAutoScalingInstances", "DescribeInstances"
    return [
        ("misspelt member in a request", "InstanceIDs: unknown member",
         edited("SendCommand", rename("InstanceIDs", "InstanceIds"), "request")),
        ("required member missing in a request", "DocumentName: required member is missing",
         edited("SendCommand", remove("DocumentName"), "request")),
        ("number as a string", "TimeoutSeconds: is not of type integer",
         edited("SendCommand", put("TimeoutSeconds", "120"), "request")),
        ("number that is too small", "TimeoutSeconds: less than 30",
         edited("SendCommand", put("TimeoutSeconds", 29), "request")),
        ("number with a fraction", "MaxResults: is not of type integer",
         edited(invocation, put("MaxResults", 50.0), "request")),
        ("51 ids", "InstanceIds: more items than 50",
         edited("SendCommand", put("InstanceIds", INSTANCES[:51]), "request")),
        ("no instance id", "InstanceIds[]: does not match", edited("SendCommand", put("InstanceIds", 0, "web-1"), "request")),
        ("a string instead of a list", "Parameters{}: is not a list",
         edited("SendCommand", put("Parameters", "sentAt", "1764025200"), "request")),
        ("a percentage above 100", "MaxConcurrency: does not match",
         edited("SendCommand", put("MaxConcurrency", "101%"), "request")),
        ("document version in words", "DocumentVersion: does not match",
         edited("SendCommand", put("DocumentVersion", "latest"), "request")),
        ("comment of 101 characters", "Comment: more characters than 100",
         edited("SendCommand", put("Comment", "c" * 101), "request")),
        ("short command id", "CommandId: fewer characters than 36",
         edited(invocation, put("CommandId", COMMAND[:-1]), "request")),
        ("boolean as a string", "Details: is not a boolean", edited(invocation, put("Details", "true"), "request")),
        ("bad execution id", "filter.pipelineExecutionId: does not match",
         edited("ListActionExecutions", put("filter", "pipelineExecutionId", "EXAMPLE0" + EXECUTION[8:]), "request")),
        ("status never heard of in a request", "includeOnlyStatuses[]: not a value of the enumeration",
         edited("ListDeployments", put("includeOnlyStatuses", 0, "Running"), "request")),
        ("filter never heard of", "targetFilters{key}: not a value of the enumeration",
         edited("ListDeploymentTargets", put("targetFilters", {"Label": ["Green"]}), "request")),
        ("timestamp as text in a request", "createTimeRange.start: is not a timestamp",
         edited("ListDeployments", put("createTimeRange", "start", "2025-11-25T00:00:00Z"), "request")),
        ("null in a request", "NextToken: is null", edited(node, put("NextToken", None), "request")),
        ("page size of 4", "MaxResults: less than 5", edited(node, put("MaxResults", 4), "request")),
        ("filter without values", "Filters[].Values: fewer items than 1",
         edited(node, put("Filters", 0, "Values", []), "request")),
        ("26 deployments in one call", "deploymentIds: more items than 25",
         with_request("BatchGetDeployments", {"deploymentIds": [f"d-{n}" for n in range(26)]})),
        ("application without group", "one of applicationName and deploymentGroupName",
         with_request("ListDeployments", {"applicationName": "shop"})),
        ("request that is no JSON", "the request is not valid JSON", replaced("GetDeployment", "}", "", "request")),
        ("member given twice", "member given twice",
         replaced("GetDeployment", "{", '{"deploymentId": "d-1", ', "request")),
        ("wrong target", "X-Amz-Target is not", headed("GetDeployment", "request", "X-Amz-Target", "CodeDeploy.GetDeployment")),
        ("content type of JSON 1.0", "content type is not application/x-amz-json-1.1",
         headed("SendCommand", "request", "Content-Type", "application/x-amz-json-1.0")),
        ("signed for another service", "signed for another service or region",
         headed("SendCommand", "request", "Authorization",
                "AWS4-HMAC-SHA256 Credential=AKID/20251125/eu-west-1/sns/aws4_request, Signature=00")),
        ("wrong version", "Version: is not 2010-03-31", replaced(publish, "2010-03-31", "2011-01-01", "request")),
        ("wrong action", "Action: is not Publish", replaced(publish, "Action=Publish", "Action=Publishh", "request")),
        ("unknown parameter", "Topic: unknown member", replaced(publish, "TopicArn=", "Topic=", "request")),
        ("map entry without its value", "an entry holds Name and Value",
         replaced(publish, "MessageAttributes.entry.1.Value.", "MessageAttributes.entry.1.Val.", "request")),
        ("map without entries", "a map's items stand under 'entry'",
         with_form(publish, "MessageAttributes.entry.", "MessageAttributes.member.")),
        ("required member of a structure in a form", "MessageAttributes{}.DataType: required member is missing",
         replaced(publish, "MessageAttributes.entry.1.Value.DataType=String&", "", "request")),
        ("list that starts at 0", "are not 1, 2, 3",
         replaced(scaling, "InstanceIds.member.1=", "InstanceIds.member.0=", "request")),
        ("flattened list", "a list's items stand under 'member'", with_form(scaling, "InstanceIds.member.", "InstanceIds.")),
        ("51 ids in a form", "InstanceIds: more items than 50", with_request(scaling, {"InstanceIds": INSTANCES[:51]})),
        ("page size in words", "MaxRecords: is not of type integer",
         replaced("DescribeAutoScalingGroups", "MaxRecords=100", "MaxRecords=many", "request")),
        ("control character for Auto Scaling", "AutoScalingGroupNames[]: does not match",
         with_request("DescribeAutoScalingGroups", {"AutoScalingGroupNames": ["web\x07"]})),
        ("subject of 100 characters", "Subject: not 1 to 99 characters",
         with_request(publish, {"TopicArn": TOPIC, "Message": "m", "Subject": "s" * 100})),
        ("subject of two lines", "Subject: not printable ASCII",
         with_request(publish, {"TopicArn": TOPIC, "Message": "m", "Subject": "one\ntwo"})),
        ("message too large", "message and attributes over 262,144 bytes",
         with_request(publish, {"TopicArn": TOPIC, "Message": "m" * 262_145})),
        ("bodies without default", "no JSON object with 'default'",
         with_request(publish, {"TopicArn": TOPIC, "Message": '{"sqs":"{}"}', "MessageStructure": "json"})),
        ("topic and target", "exactly one of TopicArn",
         with_request(publish, {"TopicArn": TOPIC, "TargetArn": TOPIC, "Message": "m"})),
        ("operation of another service", "not one of the 13 operations", foreign("s3", "ListBuckets")),
        ("foreign operation of a known service", "not one of the 13 operations", foreign("ssm", "ListCommands")),
        ("list of EC2 under a word", "Filters[].Values: the numbers of its items are not 1, 2, 3",
         with_form(machines, "Filter.1.Value.", "Filter.1.Value.member.")),
        ("filter of EC2 in the plural", "Filters on the wire: unknown member", with_form(machines, "Filter.1.", "Filters.1.")),
        ("small letters in a request to EC2", "maxResults on the wire: unknown member",
         replaced(machines, "MaxResults=", "maxResults=", "request")),
        ("page size of 1001 for EC2", "MaxResults: not between 5 and 1000", with_request(machines, {"MaxResults": 1001})),
        ("page size of 4 for EC2", "MaxResults: not between 5 and 1000", with_request(machines, {"MaxResults": 4})),
        ("ids and a page size for EC2", "InstanceIds: together with MaxResults",
         with_request(machines, {"InstanceIds": INSTANCES[:1], "MaxResults": 5})),
        ("201 values in filters", "Filters: more than 200 values",
         with_request(machines, {"Filters": [{"Name": "instance-id", "Values": [f"i-{n:017x}" for n in range(201)]}]})),
        ("filter of EC2 without values", "Filters[].Values: a filter without values",
         with_request(machines, {"Filters": [{"Name": "instance-id"}]})),
        ("older version of EC2's API", "Version: is not 2016-11-15", replaced(machines, "2016-11-15", "2014-10-01", "request")),
    ]


def with_form(operation, old, new):
    """The good exchange with every `old` of its form replaced."""
    changed = copy.deepcopy(GOOD[operation])
    assert old in changed["request"]["body"]
    changed["request"]["body"] = changed["request"]["body"].replace(old, new)
    return changed


def bad_json_answers():
    invocation, node = "ListCommandInvocations", "DescribeInstanceInformation"
    first = ("CommandInvocations", 0)
    return [
        ("misspelt member", "CommandInvocations[].StatusDetail: unknown member",
         edited(invocation, rename("StatusDetail", *first, "StatusDetails"))),
        ("wrong case of a member", "deploymentInfo.DeploymentId: unknown member",
         edited("GetDeployment", rename("DeploymentId", "deploymentInfo", "deploymentId"))),
        ("required member missing", "input.actionTypeId.provider: required member is missing",
         edited("ListActionExecutions", remove("actionExecutionDetails", 0, "input", "actionTypeId", "provider"))),
        ("number as a string in an answer", "CommandPlugins[].ResponseCode: is not of type integer",
         edited(invocation, put(*first, "CommandPlugins", 0, "ResponseCode", "33"))),
        ("timestamp as text in JSON", "Command.RequestedDateTime: is not a timestamp in epoch seconds",
         edited("SendCommand", put("Command", "RequestedDateTime", "2025-11-25T00:00:00Z"))),
        ("timestamp in milliseconds", "completeTime: is no time between",
         edited("GetDeployment", put("deploymentInfo", "completeTime", NOW * 1000))),
        ("status never heard of", "CommandInvocations[].Status: not a value of the enumeration",
         edited(invocation, put(*first, "Status", "Exploded"))),
        ("wrong case of a value", "computePlatform: not a value of the enumeration",
         edited("GetDeploymentGroup", put("deploymentGroupInfo", "computePlatform", "SERVER"))),
        ("command id of 35 characters", "Command.CommandId: fewer characters than 36",
         edited("SendCommand", put("Command", "CommandId", COMMAND[:-1]))),
        ("bad pattern of an instance id", "InstanceInformationList[].InstanceId: does not match",
         edited(node, put("InstanceInformationList", 0, "InstanceId", "i-1"))),
        ("bad agent version", "InstanceInformationList[].AgentVersion: does not match",
         edited(node, put("InstanceInformationList", 0, "AgentVersion", "v3"))),
        ("short plugin name", "CommandPlugins[].Name: fewer characters than 4",
         edited(invocation, put(*first, "CommandPlugins", 0, "Name", "lin"))),
        ("output too long", "CommandPlugins[].Output: more characters than 2500",
         edited(invocation, put(*first, "CommandPlugins", 0, "Output", "o" * 2501))),
        ("null in an answer", "NextToken: is null", edited(invocation, put("NextToken", None))),
        ("list instead of a structure", "deploymentInfo: is not a structure", edited("GetDeployment", put("deploymentInfo", []))),
        ("structure instead of a list", "targetIds: is not a list", edited("ListDeploymentTargets", put("targetIds", {}))),
        ("boolean as a number", "terminationHookEnabled: is not a boolean",
         edited("GetDeploymentGroup", put("deploymentGroupInfo", "terminationHookEnabled", 0))),
        ("empty next token", "nextToken: fewer characters than 1", edited("ListActionExecutions", put("nextToken", ""))),
        ("more than a page", "InstanceInformationList: more items than one page may hold",
         edited(node, lambda body: body.update(InstanceInformationList=body["InstanceInformationList"] * 51))),
        ("more than a default page", "InstanceInformationList: more items than one page may hold",
         over_default_page(node)),
        ("answer that is no JSON", "the answer is not valid JSON", replaced("GetDeployment", "}", "")),
        ("answer that is a list", "the answer is not a JSON object", with_answer("GetDeployment", json_response([]))),
        ("NaN", "NaN is no JSON", replaced("GetDeployment", str(NOW), "NaN")),
        ("XML from a JSON service", "content type is not application/x-amz-json-1.1",
         with_answer("GetDeployment", xml_response("<GetDeploymentResponse/>"))),
        ("no request id", "no header x-amzn-RequestId", headed("SendCommand", "response", "x-amzn-RequestId", None)),
        ("status 201", "the status is neither 200 nor an error", with_answer("GetDeployment", json_response({}, 201))),
    ]


def over_default_page(node):
    changed = with_request(node, {})
    body = json.loads(changed["response"]["body"])
    body["InstanceInformationList"] *= 11
    changed["response"]["body"] = json.dumps(body)
    return changed


def bad_xml_answers():
    groups, instances = "DescribeAutoScalingGroups", "DescribeAutoScalingInstances"
    wrapped = copy.deepcopy(GOOD["Publish"])
    wrapped["response"]["body"] = wrapped["response"]["body"].replace("PublishResult", "PublishOutput")
    renamed = copy.deepcopy(GOOD["Publish"])
    renamed["response"]["body"] = renamed["response"]["body"].replace("PublishResponse", "PublishAnswer")
    machines = "DescribeInstances"
    whole = GOOD[machines]["response"]["body"]
    machine = whole[whole.index("<item><instanceId>"):whole.index("</item>") + len("</item>")]
    items = copy.deepcopy(GOOD[instances])
    items["response"]["body"] = items["response"]["body"].replace("member>", "item>")
    return [
        ("wrong XML wrapper", "PublishResult: XML element is missing", wrapped),
        ("wrong XML root", "the XML root is not PublishResponse", renamed),
        ("wrong namespace", "XML namespace is not", replaced("Publish", XML["sns"], XML["autoscaling"])),
        ("no metadata", "ResponseMetadata: XML element is missing",
         replaced("Publish", f"<ResponseMetadata><RequestId>{REQUEST_ID}</RequestId></ResponseMetadata>", "")),
        ("no request id in XML", "ResponseMetadata.RequestId: XML element is missing",
         replaced("Publish", f"<RequestId>{REQUEST_ID}</RequestId>", "")),
        ("unknown XML element", "AutoScalingGroups[].Size: unknown XML element",
         replaced(groups, "<MinSize>0</MinSize>", "<MinSize>0</MinSize><Size>1</Size>")),
        ("required member missing in XML", "AutoScalingGroups[].MinSize: required member is missing",
         replaced(groups, "<MinSize>0</MinSize>", "")),
        ("words instead of a number in XML", "MaxSize: is not of type integer", replaced(groups, "<MaxSize>9<", "<MaxSize>nine<")),
        ("epoch seconds in XML", "CreatedTime: is not an ISO 8601 time", replaced(groups, "2025-11-01T00:00:00.123Z", "1764025200")),
        ("capital boolean in XML", "ProtectedFromScaleIn: is not of type boolean", replaced(instances, ">false<", ">False<")),
        ("lifecycle never heard of", "LifecycleState: not a value of the enumeration", replaced(groups, "InService", "OnHoliday")),
        ("list items of another name", "a list's XML elements are named 'member'", items),
        ("element given twice", "XML element stands there twice",
         replaced(groups, "<MinSize>0</MinSize>", "<MinSize>0</MinSize><MinSize>0</MinSize>")),
        ("text between elements", "has text between its elements", replaced(groups, "<MinSize>", "x<MinSize>")),
        ("instance id too long in XML", "InstanceId: more characters than 19", replaced(instances, INSTANCES[0], INSTANCES[0] + "0")),
        ("result wrapper from EC2", "DescribeInstancesResult: unknown XML element",
         with_answer(machines, ec2_answer("<DescribeInstancesResult></DescribeInstancesResult>"))),
        ("wrong XML root from EC2", "the XML root is not DescribeInstancesResponse",
         with_answer(machines, xml_answer("ec2", "DescribeInstance", ""))),
        ("no request id from EC2", "requestId: an answer has one", replaced(machines, f"<requestId>{REQUEST_ID}</requestId>", "")),
        ("list items of another name from EC2", "a list's XML elements are named 'item'",
         replaced(machines, f"<instancesSet>{machine}", f"<instancesSet>{machine.replace('item>', 'member>')}")),
        ("member's own name from EC2", "Reservations[].Instances[].InstanceId: unknown XML element",
         replaced(machines, f"<instanceId>{INSTANCES[0]}</instanceId>", f"<InstanceId>{INSTANCES[0]}</InstanceId>")),
        ("state never heard of", "State.Name: not a value of the enumeration", replaced(machines, ">running<", ">resting<")),
        ("more than a page from EC2", "more items than one page may hold", replaced(machines, machine, machine * 1000)),
        ("broken XML", "is not valid XML", replaced("Publish", "</PublishResult>", "")),
        ("JSON from a query service", "content type is not text/xml", with_answer("Publish", json_response({"MessageId": COMMAND}))),
    ]


def namespaced(response):
    return response | {"body": response["body"].replace("<Response>", f'<Response xmlns="{XML["ec2"]}">')}


def bad_errors():
    def error(operation, members, status=400):
        return with_answer(operation, json_response(members, status))

    untexted = xml_error("sns", "NotFound", 404)
    untexted["body"] = untexted["body"].replace("<Message>it is so</Message>", "")
    unidentified = xml_error("sns", "NotFound", 404)
    unidentified["body"] = unidentified["body"].replace(f"<RequestId>{REQUEST_ID}</RequestId>", "")
    return [
        ("error of another operation", "that the operation does not declare",
         error("GetDeployment", {"__type": "InvalidInstanceId", "Message": "no"})),
        ("misspelt error", "that the operation does not declare",
         error("SendCommand", {"__type": "InvalidInstanceID", "Message": "no"})),
        ("wrong status of an error", "the status of InvalidInstanceId is not 400",
         error("SendCommand", {"__type": "InvalidInstanceId", "Message": "no"}, 404)),
        ("fault with the status of an error", "the status of InternalServerError is not 500",
         error("SendCommand", {"__type": "InternalServerError", "Message": "no"}, 400)),
        ("error text of another case", "InvalidInstanceId.message: unknown member",
         error("SendCommand", {"__type": "InvalidInstanceId", "message": "no"})),
        ("error without text", "an error without text", error("SendCommand", {"__type": "InvalidInstanceId"})),
        ("error with a foreign member", "DeploymentDoesNotExistException.code: unknown member",
         error("GetDeployment", {"__type": "DeploymentDoesNotExistException", "message": "no", "code": 1})),
        ("error without a type", "an error names its type", error("GetDeployment", {"message": "no"})),
        ("error of the query protocol from a JSON service", "that the operation does not declare",
         error("SendCommand", {"__type": "RequestLimitExceeded", "message": "slow down"})),
        ("shape's name instead of its code", "that the operation does not declare",
         with_answer("Publish", xml_error("sns", "NotFoundException", 404))),
        ("wrong status in XML", "the status of NotFound is not 404", with_answer("Publish", xml_error("sns", "NotFound", 400))),
        ("wrong party", "Error.Type: is not Sender", with_answer("Publish", xml_error("sns", "NotFound", 404, "Receiver"))),
        ("error of a JSON service in XML", "that the operation does not declare",
         with_answer("Publish", xml_error("sns", "SerializationException"))),
        ("XML error without text", "Error.Message: XML element is missing", with_answer("Publish", untexted)),
        ("XML error without request id", "RequestId: XML element is missing", with_answer("Publish", unidentified)),
        ("error in the other service's namespace", "XML namespace is not",
         with_answer("Publish", xml_error("autoscaling", "NotFound", 404))),
        ("EC2's error in the form of other services", "the XML root is not Response",
         with_answer("DescribeInstances", xml_error("ec2", "RequestLimitExceeded", 503))),
        ("EC2's error with a namespace", "the XML root is not Response",
         with_answer("DescribeInstances", namespaced(ec2_error("UnauthorizedOperation", 403)))),
        ("error of other services from EC2", "that the operation does not declare",
         with_answer("DescribeInstances", ec2_error("AccessDenied", 403))),
        ("wrong status from EC2", "the status of RequestLimitExceeded is not 503",
         with_answer("DescribeInstances", ec2_error("RequestLimitExceeded", 400))),
        ("EC2's error in the other service's form", "the XML root is not ErrorResponse",
         with_answer("Publish", ec2_error("InternalFailure", 500))),
        ("error page of a proxy", "is not valid XML", with_answer("Publish", xml_response("Bad Gateway", 502))),
    ]


def bad_lines():
    headless = copy.deepcopy(GOOD["SendCommand"])
    del headless["request"]["headers"]
    return [
        ("exchange without headers", "not an exchange: 'request.headers'", headless),
        ("exchange without operation", "not an exchange: 'operation'", {"service": "ssm", "region": "eu-west-1"}),
        ("line that is a list", "not an exchange: not an object", []),
    ]


# --------------------------------------------------------------------------------- running


def violations(*exchanges, **allowed):
    """What the checker says about these exchanges, one text each."""
    checker = Checker(**allowed)
    for number, one in enumerate(exchanges, 1):
        checker.exchange(one, f"line {number}")
    checker.finish()
    return [f"{path}: {message}" if path else message for _, _, _, path, message in checker.violations], checker


class Tally:
    def __init__(self):
        self.passed, self.failed = 0, 0

    def expect(self, condition, name, detail=""):
        if condition:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED {name}: {detail}")


def run_command(lines, *options):
    """(exit status, output) of the program on one transcript."""
    with tempfile.TemporaryDirectory() as directory:
        if lines is not None:
            text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
            Path(directory, "world.jsonl").write_text(text)
        output = []
        return main([*options, directory], output.append), "\n".join(output)


def test_good(tally):
    wanted = {name for names in OPERATIONS.values() for name in names}
    tally.expect(set(GOOD) == wanted and len(wanted) == 13, "a good exchange of each operation", set(GOOD) ^ wanted)
    for name, one in (GOOD | good_errors()).items():
        found, _ = violations(one)
        tally.expect(not found, f"good: {name}", found)


def test_bad(tally):
    bad = bad_requests() + bad_json_answers() + bad_xml_answers() + bad_errors() + bad_lines()
    assert len({name for name, _, _ in bad}) == len(bad) >= 25
    for name, words, one in bad:
        found, _ = violations(one)
        tally.expect(any(words in text for text in found), f"bad: {name}", f"wanted {words!r} in {found}")
    return len(bad)


def test_tolerance(tally):
    odd = edited("ListCommandInvocations", put("CommandInvocations", 0, "Status", "Exploded"))
    found, checker = violations(odd, odd, invented=["Exploded"])
    tally.expect(not found and sum(checker.unknown_enums.values()) == 2, "allowed unknown value is counted", found)
    found, _ = violations(odd, invented=["Evaporated"])
    tally.expect(found, "an unknown value that is not the invented one")
    other = edited("ListActionExecutions", put("actionExecutionDetails", 0, "input", "actionTypeId", "owner", "Me"))
    found, _ = violations(other)
    tally.expect(found, "unknown value without the flag")
    listed = edited("SendCommand", put("Command", "Status", "Exploded"))
    found, _ = violations(listed, invented=["Exploded"])
    tally.expect(found, "an enumeration that is not listed fails with the flag too")
    many = edited("SendCommand", put("InstanceIds", INSTANCES[:51]), "request")
    found, _ = violations(many, refused_requests_allowed=True)
    tally.expect(found, "51 ids that were accepted")
    many["response"] = json_response({"__type": "ValidationException", "message": "at most 50"}, 400)
    found, _ = violations(many)
    tally.expect(found, "51 ids that were refused, without the flag")
    found, checker = violations(many, refused_requests_allowed=True)
    tally.expect(not found and sum(checker.refused.values()) == 1, "51 ids that were refused, with the flag", found)


def test_patterns(tally):
    xml_string = "[\\u0020-\\uD7FF\\uE000-\\uFFFD\\uD800\\uDC00-\\uDBFF\\uDFFF\\r\\n\\t]*"
    tally.expect(compile_pattern(xml_string).fullmatch("a\U0001F600\n"), "a character outside the first plane")
    tally.expect(not compile_pattern(xml_string).fullmatch("a\x00"), "a control character")
    key = "^[\\p{L}\\p{Z}\\p{N}_.:/=\\-@]*$|resource-groups:Name"
    tally.expect(compile_pattern(key).fullmatch("tag:größe 1"), "letters of any language")
    tally.expect(not compile_pattern(key).fullmatch("tag;1"), "a character of no class")


def test_program(tally):
    everything = list(GOOD.values())
    status, output = run_command(everything, "--require-operations")
    tally.expect(status == 0, "the program accepts all good exchanges", output)
    status, output = run_command(everything + [bad_errors()[0][2]] * 3)
    tally.expect(status == 1 and "(3 times, first at" in output and ":14)" in output, "one line for three of a kind", output)
    status, output = run_command(everything[1:], "--require-operations")
    tally.expect(status == 1 and "never answered" in output, "an operation that never occurred", output)
    status, output = run_command(everything[1:])
    tally.expect(status == 0, "an operation that never occurred is fine unless asked for", output)
    for name, lines in {"no transcript": None, "an empty transcript": []}.items():
        status, output = run_command(lines)
        tally.expect(status == 1 and "no exchange at all" in output, name, output)
    status, output = run_command([GOOD["SendCommand"], '{"service": "ssm"'])
    tally.expect(status == 1 and "a line that is not JSON" in output, "a cut line", output)


def run():
    tally = Tally()
    test_good(tally)
    seeded = test_bad(tally)
    test_tolerance(tally)
    test_patterns(tally)
    test_program(tally)
    print(f"selftest: {tally.passed} passed, {tally.failed} failed, {seeded} of them seeded faults")
    return 1 if tally.failed or not tally.passed else 0


if __name__ == "__main__":
    sys.exit(run())
