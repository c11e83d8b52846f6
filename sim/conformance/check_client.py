#!/usr/bin/env python3
"""Reads the simulated AWS through its port with botocore, and compares with the world file.

    check_client.py --sim BINARY [--transcripts DIR]

Starts `BINARY serve` with world.json on a free loopback port, asks all 13 operations with
boto3's clients, follows every page to the end, provokes the errors that the restarter
has to understand, sends commands and polls them to their end. One line for each check;
exit status 1 when one fails. With --transcripts the server records every exchange there,
for check_transcripts.py.
"""

import argparse
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from check_transcripts import OPERATIONS

WORLD = Path(__file__).with_name("world.json")
REGION, OTHER_REGION = "eu-west-1", "us-east-1"
# Durations of the world are this many times shorter.
SPEED = 50
READY = "sim listens on http://127.0.0.1:"
# Seconds for the server to be ready, and for all commands to come to their end.
START_LIMIT, COMMAND_LIMIT = 20, 60
# Seconds by which a time may differ from the world file's: the server's start is not known better.
CLOCK_TOLERANCE = 10
TOPIC = "arn:aws:sns:eu-west-1:123456789012:agent-restarts"
PARAMETERS = {"busyWaitSeconds": ["120"], "minMemoryMiB": ["0"], "executionTimeoutSeconds": ["570"]}
TERMINAL = {"Success", "Failed", "Cancelled", "TimedOut"}

# What each odd host of world.json reports: response code, result of the document's line.
ODD_HOSTS = {
    2: (10, "not-installed"), 3: (0, "started"), 4: (11, "not-root"), 5: (12, "preflight-failed"),
    6: (32, "agent-down"), 7: (33, "agent-unhealthy"), 8: (31, "old-agent-survived"),
    9: (30, "service-manager-failed"), 10: (20, "busy"), 11: (21, "update-running"),
}
FOREIGN_OUTPUT, HANGING, OFFLINE, UNMANAGED, REJECTED, WINDOWS = 13, 14, 15, 53, 55, 60
# Hosts that EC2 does not call running, and one that it does not show any more.
TERMINATED, STOPPED, FORGOTTEN = 53, 54, 55

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def instance(number):
    return f"i-{number:017x}"


class Server:
    """The simulator on a port of its own; ended by its process id."""

    def __init__(self, binary, transcripts):
        environment = dict(os.environ)
        if transcripts:
            Path(transcripts).mkdir(parents=True, exist_ok=True)
            environment["SIM_TRANSCRIPT_DIR"] = str(transcripts)
        command = [binary, "serve", "--port", "0", "--world", str(WORLD), "--speed", str(SPEED)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            self.url = self._ready()
        except BaseException:
            self.stop()
            raise
        self.started = time.time()

    def _ready(self):
        lines = queue.Queue()
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()
        try:
            line = lines.get(timeout=START_LIMIT)
        except queue.Empty:
            raise SystemExit(f"the simulator said nothing within {START_LIMIT} s") from None
        if not line.startswith(READY):
            raise SystemExit(f"the simulator did not become ready, its first line: {line!r}")
        return f"http://127.0.0.1:{int(line.removeprefix(READY))}"

    def _read(self, lines):
        for line in self.process.stdout:
            lines.put(line.rstrip("\n"))
        lines.put("")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Aws:
    """boto3's clients on the server, and the world file to compare with."""

    def __init__(self, server):
        self.server = server
        self.world = json.loads(WORLD.read_text())
        self.data = self.world["regions"][REGION]
        self.hosts = {host["id"]: host for host in self.data["hosts"]}
        self.deployments = {each["id"]: each for each in self.data["deployments"]}
        self.commands = {}  # Filled by the checks that send: name → (command id, instance ids).

    def client(self, service, region=REGION, validate=True):
        config = Config(retries={"total_max_attempts": 1}, connect_timeout=3, read_timeout=30,
                        parameter_validation=validate)
        return boto3.client(service, region_name=region, endpoint_url=self.server.url, config=config,
                            aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="no-secret")

    def at(self, told, relative):
        """Whether a time told equals the world file's, which counts from the world's start."""
        return abs(told.timestamp() - (self.server.started + relative)) < CLOCK_TOLERANCE

    def state(self):
        with urllib.request.urlopen(f"{self.server.url}/_sim/state", timeout=10) as answer:
            return json.load(answer)


def pages(client, operation, key, least=1, **parameters):
    """All items of an operation, read with botocore's paginator; `least` pages or more."""
    read = list(client.get_paginator(operation).paginate(**parameters))
    assert len(read) >= least, f"{len(read)} page(s), expected at least {least}"
    return [item for page in read for item in page.get(key, [])]


def by_hand(call, key, token="nextToken", **parameters):
    """The same with a loop over tokens, for what the paginator hides."""
    items, given = [], set()
    while True:
        page = call(**parameters)
        items += page.get(key, [])
        following = page.get(token)
        if following is None:
            return items
        assert following and following not in given, f"token {following!r} came before, or is empty"
        given.add(following)
        parameters[token] = following


def refused(codes, call, **parameters):
    """The call must end in one of these error codes, with a text."""
    codes = {codes} if isinstance(codes, str) else set(codes)
    try:
        call(**parameters)
    except ClientError as error:
        told = error.response["Error"]
        assert told["Code"] in codes, f"{told['Code']} ({told.get('Message')}) instead of {sorted(codes)}"
        assert told.get("Message"), f"{told['Code']} comes without a text"
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert 400 <= status < 500, f"{told['Code']} has the status {status}"
        return
    raise AssertionError(f"accepted, expected {sorted(codes)}")


def same(told, wanted, what):
    """Equal, with a message that shows the difference only."""
    if isinstance(told, (list, tuple)) and isinstance(wanted, (list, tuple)):
        extra = [each for each in told if each not in wanted]
        missing = [each for each in wanted if each not in told]
        assert not extra and not missing, f"{what}: unexpected {extra[:3]}, missing {missing[:3]}"
    assert told == wanted, f"{what}: {told!r} instead of {wanted!r}"


# ------------------------------------------------------------------------------ CodePipeline


@check
def list_action_executions(aws):
    client = aws.client("codepipeline")
    execution = aws.data["pipelines"][0]["executions"][0]
    told = pages(client, "list_action_executions", "actionExecutionDetails", least=3,
                 pipelineName="shop", filter={"pipelineExecutionId": execution["id"]})
    same(len(told), 23, "number of rows")
    same([row["actionName"] for row in sorted(told, key=lambda row: row["lastUpdateTime"])],
         [action["action"] for action in sorted(execution["actions"], key=lambda a: a["updatedAt"])], "actions in order")
    by_name = {row["actionName"]: row for row in told}
    for action in execution["actions"]:
        row = by_name[action["action"]]
        kind = row["input"]["actionTypeId"]
        same(row["pipelineExecutionId"], execution["id"], "execution")
        same((row["stageName"], row["status"], kind["owner"], kind["category"], kind["provider"]),
             (action["stage"], action.get("status", "Succeeded"), action.get("owner", "AWS"),
              action.get("category", "Deploy"), action.get("provider", "CodeDeploy")), action["action"])
        assert aws.at(row["lastUpdateTime"], action["updatedAt"]), f"{action['action']}: {row['lastUpdateTime']}"
    last = by_name["to-web"]
    same(last["output"]["executionResult"]["externalExecutionId"], "d-SHOPWEB01", "deployment id")
    same(last["input"]["resolvedConfiguration"]["ApplicationName"], "shop", "application")
    same(last["input"]["resolvedConfiguration"]["DeploymentGroupName"], "shop-web", "group")
    same(last["input"]["region"], REGION, "region")
    same(last["input"]["roleArn"], "arn:aws:iam::123456789012:role/shop-pipeline", "role")


@check
def list_action_executions_of_all_executions(aws):
    client = aws.client("codepipeline")
    told = by_hand(client.list_action_executions, "actionExecutionDetails", pipelineName="shop", maxResults=7)
    same(len(told), 24, "rows of both executions")
    short = client.list_action_executions(pipelineName="shop", maxResults=7)
    same(len(short["actionExecutionDetails"]), 7, "rows of a page of 7")


@check
def list_action_executions_refusals(aws):
    client, bare = aws.client("codepipeline"), aws.client("codepipeline", validate=False)
    refused("PipelineNotFoundException", client.list_action_executions, pipelineName="nowhere")
    refused("PipelineNotFoundException", aws.client("codepipeline", OTHER_REGION).list_action_executions, pipelineName="shop")
    refused("InvalidNextTokenException", client.list_action_executions, pipelineName="shop", nextToken="made-up")
    refused("PipelineExecutionNotFoundException", client.list_action_executions, pipelineName="shop",
            filter={"pipelineExecutionId": "ffffffff-4e5f-6071-8293-a4b5c6d7e8f9"})
    refused("ValidationException", client.list_action_executions, pipelineName="shop", maxResults=101)
    refused("ValidationException", client.list_action_executions, pipelineName="shop", filter={"pipelineExecutionId": "not-an-id"})
    refused("ValidationException", bare.list_action_executions)


# -------------------------------------------------------------------------------- CodeDeploy


def same_deployment(aws, info):
    wanted = aws.deployments[info["deploymentId"]]
    same((info["applicationName"], info["deploymentGroupName"], info["status"], info["creator"],
          info["computePlatform"], info["deploymentStyle"]["deploymentType"]),
         (wanted["application"], wanted["deploymentGroup"], wanted.get("status", "Succeeded"), wanted.get("creator", "user"),
          wanted.get("computePlatform", "Server"), wanted.get("style", "IN_PLACE")), wanted["id"])
    assert aws.at(info["createTime"], wanted["createdAt"]), f"{wanted['id']} created {info['createTime']}"
    if "completedAt" in wanted:
        assert aws.at(info["completeTime"], wanted["completedAt"]), f"{wanted['id']} completed {info['completeTime']}"
    else:
        assert "completeTime" not in info, f"{wanted['id']} is not complete and has a time of completion"


@check
def get_deployment(aws):
    client = aws.client("codedeploy")
    for deployment in ("d-SHOPWEB01", "d-GREEN0001", "d-FUNCTION1", "d-NOWINPROG"):
        info = client.get_deployment(deploymentId=deployment)["deploymentInfo"]
        same(info["deploymentId"], deployment, "id")
        same_deployment(aws, info)


@check
def get_deployment_refusals(aws):
    client = aws.client("codedeploy")
    refused("DeploymentDoesNotExistException", client.get_deployment, deploymentId="d-NOWHERE01")
    refused("InvalidDeploymentIdException", client.get_deployment, deploymentId="nowhere")
    refused("DeploymentDoesNotExistException", aws.client("codedeploy", OTHER_REGION).get_deployment, deploymentId="d-SHOPWEB01")
    bare = aws.client("codedeploy", validate=False)
    refused("DeploymentIdRequiredException", bare.get_deployment)


@check
def batch_get_deployments(aws):
    client = aws.client("codedeploy")
    ids = list(aws.deployments)
    told = []
    for first in range(0, len(ids), 25):
        told += client.batch_get_deployments(deploymentIds=ids[first:first + 25])["deploymentsInfo"]
    same(sorted(info["deploymentId"] for info in told), sorted(ids), "ids")
    for info in told:
        same_deployment(aws, info)
    refused("BatchLimitExceededException", client.batch_get_deployments, deploymentIds=ids[:26])


@check
def get_deployment_group(aws):
    client = aws.client("codedeploy")
    for group in aws.data["deploymentGroups"]:
        info = client.get_deployment_group(
            applicationName=group["application"], deploymentGroupName=group["name"])["deploymentGroupInfo"]
        same((info["applicationName"], info["deploymentGroupName"], info["computePlatform"],
              info["deploymentStyle"]["deploymentType"]),
             (group["application"], group["name"], group.get("computePlatform", "Server"), group.get("style", "IN_PLACE")), "group")
        same([each["name"] for each in info["autoScalingGroups"]], group.get("autoScalingGroups", []), "Auto Scaling groups")
        same([(each["Key"], each["Value"], each["Type"]) for each in info["ec2TagFilters"]],
             [(each["key"], each["value"], "KEY_AND_VALUE") for each in group.get("tagFilters", [])], "tag filters")


@check
def get_deployment_group_refusals(aws):
    call = aws.client("codedeploy").get_deployment_group
    refused("DeploymentGroupDoesNotExistException", call, applicationName="shop", deploymentGroupName="nowhere")
    refused("ApplicationDoesNotExistException", call, applicationName="nowhere", deploymentGroupName="shop-web")


@check
def list_deployments(aws):
    client = aws.client("codedeploy")
    of_group = [each for each in aws.data["deployments"] if each["deploymentGroup"] == "shop-web"]
    told = pages(client, "list_deployments", "deployments", least=3, applicationName="shop", deploymentGroupName="shop-web")
    same(sorted(told), sorted(each["id"] for each in of_group), "all of one group")
    for status in ("Succeeded", "Failed", "Stopped"):
        told = by_hand(client.list_deployments, "deployments", applicationName="shop",
                       deploymentGroupName="shop-web", includeOnlyStatuses=[status])
        same(sorted(told), sorted(each["id"] for each in of_group if each.get("status", "Succeeded") == status), status)
    told = by_hand(client.list_deployments, "deployments", applicationName="shop", deploymentGroupName="shop-green",
                   includeOnlyStatuses=["Created", "Queued", "InProgress", "Baking", "Ready"])
    same(len(told), 5, "running deployments")
    same(sorted(by_hand(client.list_deployments, "deployments")), sorted(aws.deployments), "all of the region")
    same(by_hand(aws.client("codedeploy", OTHER_REGION).list_deployments, "deployments"), [], "another region")


@check
def list_deployments_since(aws):
    told = by_hand(aws.client("codedeploy").list_deployments, "deployments", applicationName="shop",
                   deploymentGroupName="shop-web", createTimeRange={"start": aws.server.started - 12_050})
    same(sorted(told), sorted(each["id"] for each in aws.data["deployments"]
                              if each["deploymentGroup"] == "shop-web" and each["createdAt"] > -12_050), "since a time")


@check
def list_deployments_refusals(aws):
    call = aws.client("codedeploy").list_deployments
    refused("DeploymentGroupDoesNotExistException", call, applicationName="shop", deploymentGroupName="nowhere")
    refused("ApplicationDoesNotExistException", call, applicationName="nowhere", deploymentGroupName="shop-web")
    refused("DeploymentGroupNameRequiredException", call, applicationName="shop")
    refused("ApplicationNameRequiredException", call, deploymentGroupName="shop-web")
    refused("InvalidNextTokenException", call, nextToken="made-up")
    refused("InvalidDeploymentStatusException", call, applicationName="shop", deploymentGroupName="shop-web",
            includeOnlyStatuses=["Running"])


@check
def list_deployment_targets(aws):
    client = aws.client("codedeploy")
    told = pages(client, "list_deployment_targets", "targetIds", least=3, deploymentId="d-SHOPWEB01")
    same(sorted(told), [target["id"] for target in aws.deployments["d-SHOPWEB01"]["targets"]], "targets")
    green = [target["id"] for target in aws.deployments["d-GREEN0001"]["targets"] if target["label"] == "Green"]
    told = by_hand(client.list_deployment_targets, "targetIds", deploymentId="d-GREEN0001",
                   targetFilters={"ServerInstanceLabel": ["Green"]})
    same(sorted(told), green, "green targets")
    same(len(by_hand(client.list_deployment_targets, "targetIds", deploymentId="d-GREEN0001")), 40, "blue and green")
    skipped = [t["id"] for t in aws.deployments["d-SHOPWEB01"]["targets"] if t["status"] == "Skipped"]
    told = by_hand(client.list_deployment_targets, "targetIds", deploymentId="d-SHOPWEB01",
                   targetFilters={"TargetStatus": ["Skipped"]})
    same(sorted(told), skipped, "skipped targets")


@check
def list_deployment_targets_refusals(aws):
    call = aws.client("codedeploy").list_deployment_targets
    refused("InvalidDeploymentInstanceTypeException", call, deploymentId="d-SHOPWEB01",
            targetFilters={"ServerInstanceLabel": ["Green"]})
    refused("DeploymentDoesNotExistException", call, deploymentId="d-NOWHERE01")
    refused("InvalidNextTokenException", call, deploymentId="d-SHOPWEB01", nextToken="made-up")


# ------------------------------------------------------------------------------ Auto Scaling


def members(group):
    return sorted((each["id"], each.get("lifecycle", "InService")) for each in group["instances"])


@check
def describe_auto_scaling_groups(aws):
    client = aws.client("autoscaling")
    wanted = {group["name"]: members(group) for group in aws.data["autoScalingGroups"]}
    told = pages(client, "describe_auto_scaling_groups", "AutoScalingGroups", least=3)
    same(sorted(group["AutoScalingGroupName"] for group in told), sorted(wanted), "names")
    for group in told:
        same(sorted((each["InstanceId"], each["LifecycleState"]) for each in group["Instances"]),
             wanted[group["AutoScalingGroupName"]], group["AutoScalingGroupName"])
    some = by_hand(client.describe_auto_scaling_groups, "AutoScalingGroups", token="NextToken",
                   AutoScalingGroupNames=["back", "nowhere", "spare-3 & <co>"], MaxRecords=1)
    same(sorted(group["AutoScalingGroupName"] for group in some), ["back", "spare-3 & <co>"], "by name, unknown ones left out")


@check
def describe_auto_scaling_instances(aws):
    client = aws.client("autoscaling")
    wanted = sorted((id_, state, group["name"]) for group in aws.data["autoScalingGroups"] for id_, state in members(group))
    told = pages(client, "describe_auto_scaling_instances", "AutoScalingInstances", least=3)
    same(sorted((each["InstanceId"], each["LifecycleState"], each["AutoScalingGroupName"]) for each in told), wanted, "all")
    ids = [instance(n) for n in range(12, 61)] + [instance(999)]
    told = by_hand(client.describe_auto_scaling_instances, "AutoScalingInstances", token="NextToken", InstanceIds=ids)
    same(sorted(each["InstanceId"] for each in told), sorted(ids[:-1]), "by id, unknown ones left out")


@check
def auto_scaling_refusals(aws):
    client = aws.client("autoscaling")
    refused("InvalidNextToken", client.describe_auto_scaling_groups, NextToken="made-up")
    refused("InvalidNextToken", client.describe_auto_scaling_instances, NextToken="made-up")
    refused("ValidationError", client.describe_auto_scaling_groups, MaxRecords=101)
    refused("ValidationError", client.describe_auto_scaling_instances, InstanceIds=[instance(n) for n in range(1, 52)])


# ---------------------------------------------------------------------------- SSM, inventory


@check
def describe_instance_information(aws):
    client = aws.client("ssm")
    # A node that SSM rejects is one that it does not list either.
    wanted = {id_: host for id_, host in aws.hosts.items() if host.get("managed", True) and not host.get("rejected")}
    told = pages(client, "describe_instance_information", "InstanceInformationList", least=6)
    same(sorted(each["InstanceId"] for each in told), sorted(wanted), "managed hosts")
    for each in told:
        host = wanted[each["InstanceId"]]
        same((each["PingStatus"], each["PlatformType"], each["ComputerName"], each.get("Name")),
             (host.get("ping", "Online"), host.get("platform", "Linux"), host["computerName"], host.get("name")), host["id"])
        if host.get("ping", "Online") != "Online":
            assert aws.at(each["LastPingDateTime"], host["lastPing"]), f"{host['id']}: {each['LastPingDateTime']}"


@check
def describe_instance_information_by_id(aws):
    client = aws.client("ssm")
    ids = [instance(n) for n in range(1, 51)]
    filters = [{"Key": "InstanceIds", "Values": ids}]
    told = by_hand(client.describe_instance_information, "InstanceInformationList", token="NextToken", Filters=filters)
    same(sorted(each["InstanceId"] for each in told), ids, "50 ids, page after page")
    page = client.describe_instance_information(Filters=filters)
    same(len(page["InstanceInformationList"]), 10, "default page")
    page = client.describe_instance_information(Filters=filters, MaxResults=50)
    same(len(page["InstanceInformationList"]), 50, "page of 50")
    told = client.describe_instance_information(
        Filters=[{"Key": "InstanceIds", "Values": [instance(1), instance(UNMANAGED)]}])["InstanceInformationList"]
    same([each["InstanceId"] for each in told], [instance(1)], "an unmanaged one is left out")


@check
def describe_instance_information_refusals(aws):
    call = aws.client("ssm").describe_instance_information
    refused("InvalidNextToken", call, NextToken="made-up")
    refused("InvalidFilterKey", call, Filters=[{"Key": "Nonsense", "Values": ["1"]}])
    refused("InvalidInstanceId", call, Filters=[{"Key": "InstanceIds", "Values": [instance(1), instance(REJECTED)]}])
    refused("ValidationException", call, MaxResults=51)


# ----------------------------------------------------------------------------- SSM, commands


def send(aws, name, numbers, triggered_at, document="restart-agent", **parameters):
    """Sends a command and remembers it; answers what SSM answered."""
    ids = [instance(n) for n in numbers]
    given = PARAMETERS | {"triggeredAt": [str(triggered_at)], "sentAt": [str(int(time.time()))]} | parameters
    command = aws.client("ssm").send_command(
        DocumentName=document, DocumentVersion="$LATEST", InstanceIds=ids, TimeoutSeconds=120, Comment=name,
        MaxConcurrency="100%", MaxErrors="100%", Parameters=given)["Command"]
    same((command["DocumentName"], command["DocumentVersion"], command["InstanceIds"], command["Comment"],
          command["MaxConcurrency"], command["MaxErrors"], command["TargetCount"], command["Parameters"]),
         (document, "$LATEST", ids, name, "100%", "100%", len(ids), given), "command told")
    same(command["Status"], "Pending", "status of a new command")
    assert abs(command["RequestedDateTime"].timestamp() - time.time()) < CLOCK_TOLERANCE, command["RequestedDateTime"]
    assert command["ExpiresAfter"] > command["RequestedDateTime"], command["ExpiresAfter"]
    aws.commands[name] = (command["CommandId"], ids)
    return command["CommandId"]


def invocations(aws, command, **more):
    return by_hand(aws.client("ssm").list_command_invocations, "CommandInvocations", token="NextToken",
                   CommandId=command, Details=True, **more)


def finished(aws, name):
    """The invocations of a command by instance number, once each has come to its end."""
    command, ids = aws.commands[name]
    limit = time.monotonic() + COMMAND_LIMIT
    while True:
        told = invocations(aws, command)
        # A list that grows between two of its pages shows somebody twice.
        once = len({each["InstanceId"] for each in told}) == len(told) == len(ids)
        if once and all(each["Status"] in TERMINAL for each in told):
            break
        open_ = [(each["InstanceId"], each["Status"]) for each in told if each["Status"] not in TERMINAL]
        assert time.monotonic() < limit, f"after {COMMAND_LIMIT} s {len(told)} of {len(ids)} listed, open: {open_[:5]}"
        time.sleep(0.2)
    same(sorted(each["InstanceId"] for each in told), sorted(ids), "instances of the command")
    return {int(each["InstanceId"][2:], 16): each for each in told}


def line_of(invocation):
    """The document's line, wherever it stands, and the plugin that holds it."""
    for plugin in invocation["CommandPlugins"]:
        first = plugin["Output"].split("\n")[0]
        if "agentRestart" in first:
            return json.loads(first), plugin
    return None, None


@check
def send_command(aws):
    command = send(aws, "first", range(1, 51), math.ceil(aws.server.started) - 10)
    early = invocations(aws, command)
    assert len(early) < 50, "all 50 invocations were listed at once, although they appear late"


@check
def poll_to_completion(aws):
    told = finished(aws, "first")
    for number, each in told.items():
        if number not in (FOREIGN_OUTPUT, HANGING, OFFLINE):
            same_restart(aws, number, each)
    odd = told[FOREIGN_OUTPUT]
    same((odd["Status"], odd["StatusDetails"]), ("Failed", "Failed"), "overridden status")
    assert any("not our document" in p["Output"] and p["ResponseCode"] == 127 for p in odd["CommandPlugins"]), odd
    same((told[HANGING]["Status"], told[HANGING]["StatusDetails"]), ("TimedOut", "ExecutionTimedOut"), "hanging host")
    same((told[OFFLINE]["Status"], told[OFFLINE]["StatusDetails"]), ("TimedOut", "DeliveryTimedOut"), "offline host")


def same_restart(aws, number, invocation, step="linux"):
    code, result = ODD_HOSTS.get(number, (0, "restarted"))
    status = "Failed" if code else "Success"
    same((invocation["Status"], invocation["StatusDetails"]), (status, status), f"status of host {number}")
    line, plugin = line_of(invocation)
    assert line, f"host {number}: no line of the document in {invocation['CommandPlugins']}"
    same((line["agentRestart"], line["result"], line["code"], plugin["ResponseCode"]), (1, result, code, code), f"host {number}")
    same([each["Name"] for each in invocation["CommandPlugins"]], [step], f"steps of host {number}")
    agent = aws.hosts[instance(number)].get("agent", {})
    if result == "restarted":
        same((line["memoryBeforeKiB"], line["memoryAfterKiB"], line["agentVersion"]),
             (agent.get("memoryKiB", 112_640), agent.get("freshMemoryKiB", 52_224),
              agent.get("version", "OFFICIAL_1.8.1-1_rpm")), f"host {number}")


@check
def one_invocation_and_pages(aws):
    command, ids = aws.commands["first"]
    client = aws.client("ssm")
    told = invocations(aws, command, InstanceId=ids[3])
    same([each["InstanceId"] for each in told], [ids[3]], "one instance")
    told = pages(client, "list_command_invocations", "CommandInvocations", least=8, CommandId=command,
                 PaginationConfig={"PageSize": 7})
    same(len(told), 50, "pages of 7")
    assert not any(each.get("CommandPlugins") for each in told), "plugins without Details"
    page = client.list_command_invocations(CommandId=command, MaxResults=50)
    same(len(page["CommandInvocations"]), 50, "page of 50")


@check
def a_repeated_command_changes_nothing(aws):
    triggered = math.ceil(aws.server.started) - 10
    send(aws, "again", [1, 16, 17, 18], triggered)
    for number, each in finished(aws, "again").items():
        same(line_of(each)[0]["result"], "already-restarted", f"host {number}")


@check
def a_small_agent_is_left_alone(aws):
    send(aws, "small", [19, 20], int(time.time()) + 1, minMemoryMiB=["100"])
    for number, each in finished(aws, "small").items():
        same(line_of(each)[0]["result"], "below-threshold", f"host {number}")


@check
def windows_has_its_own_document(aws):
    send(aws, "windows", [WINDOWS], math.ceil(aws.server.started) - 10, document="restart-windows-agent")
    same_restart(aws, WINDOWS, finished(aws, "windows")[WINDOWS], "windows")


@check
def a_foreign_document(aws):
    send(aws, "foreign", [21, 22], int(time.time()), document="somebody-elses")
    for number, each in finished(aws, "foreign").items():
        same((each["Status"], line_of(each)), ("Success", (None, None)), f"host {number}")


@check
def send_command_refusals(aws):
    client, bare = aws.client("ssm"), aws.client("ssm", validate=False)
    good = {"DocumentName": "restart-agent", "DocumentVersion": "$LATEST", "TimeoutSeconds": 120,
            "InstanceIds": [instance(1), instance(16)],
            "Parameters": PARAMETERS | {"triggeredAt": ["1764025200"], "sentAt": ["1764025201"]}}

    def refuse(codes, client=client, **changed):
        refused(codes, client.send_command, **(good | changed))

    before = commands_of(aws)
    fleet = [instance(n) for n in range(1, 50)]
    refuse("InvalidInstanceId", InstanceIds=[*fleet, instance(UNMANAGED)])
    refuse("InvalidInstanceId", InstanceIds=[*fleet, instance(REJECTED)])
    refuse("InvalidInstanceId", InstanceIds=[*fleet, instance(999)])
    refuse("ValidationException", InstanceIds=[instance(n) for n in range(1, 52)])
    refuse("DuplicateInstanceId", InstanceIds=[instance(1), instance(1)])
    refuse("UnsupportedPlatformType", InstanceIds=[instance(1), instance(WINDOWS)])
    refuse("UnsupportedPlatformType", DocumentName="restart-windows-agent")
    refuse("InvalidDocument", DocumentName="no-such-document")
    refuse("InvalidDocument", client=aws.client("ssm", OTHER_REGION))
    refuse("InvalidParameters", Parameters=good["Parameters"] | {"sentAt": ["$(reboot)"]})
    refuse("InvalidParameters", Parameters=good["Parameters"] | {"sentAt": ["01764025201"]})
    refuse("InvalidParameters", Parameters=good["Parameters"] | {"surprise": ["1"]})
    refuse("InvalidDocumentVersion", DocumentVersion="77")
    refuse("ValidationException", client=bare, TimeoutSeconds=29)
    refuse("ValidationException", MaxConcurrency="101%")
    refuse("ValidationException", InstanceIds=["web-1"])
    same(commands_of(aws), before, "commands after nothing but refusals")


def commands_of(aws):
    """Ids of all commands in the state, wherever they stand in it."""
    text = json.dumps(aws.state()["commands"])
    return sorted(name for name, (command, _) in aws.commands.items() if command in text), text.count('"id"')


@check
def list_command_invocations_refusals(aws):
    client, bare = aws.client("ssm"), aws.client("ssm", validate=False)
    command, _ = aws.commands["first"]
    refused("InvalidNextToken", client.list_command_invocations, CommandId=command, NextToken="made-up")
    refused("ValidationException", bare.list_command_invocations, CommandId=command[:-1])
    refused("ValidationException", client.list_command_invocations, CommandId=command, MaxResults=51)


# --------------------------------------------------------------------------------------- SNS


@check
def publish(aws):
    client = aws.client("sns")
    bodies = {"default": "one agent was not restarted: größer & <kleiner>", "sqs": json.dumps({"part": 1})}
    message = json.dumps(bodies)
    told = client.publish(
        TopicArn=TOPIC, Subject="1 agent was not restarted", Message=message, MessageStructure="json",
        MessageAttributes={
            "severity": {"DataType": "String", "StringValue": "warning"},
            "application": {"DataType": "String.Array", "StringValue": '["shop"]'}})
    same(len(told["MessageId"]), 36, "length of the message id")
    last = aws.state()["messages"][-1]
    same((last["topic"], last["subject"], last["message"]), (TOPIC, "1 agent was not restarted", message), "message kept")
    same(last["attributes"]["severity"]["Value"], "warning", "attribute kept")
    same((last["attributes"]["application"]["Type"], last["attributes"]["application"]["Value"]),
         ("String.Array", '["shop"]'), "array attribute kept")
    plain = client.publish(TopicArn=TOPIC, Message="plain")
    assert plain["MessageId"] != told["MessageId"], "two messages with one id"


@check
def publish_refusals(aws):
    call = aws.client("sns").publish
    before = len(aws.state()["messages"])
    refused("NotFound", call, TopicArn=TOPIC.replace("agent-restarts", "nowhere"), Message="m")
    refused("InvalidParameter", call, TopicArn=TOPIC, Message="m", Subject="s" * 101)
    refused("InvalidParameter", call, TopicArn=TOPIC, Message="m", Subject="two\nlines")
    refused("InvalidParameter", call, TopicArn=TOPIC, Message="m" * 262_145)
    refused("InvalidParameter", call, TopicArn=TOPIC, Message='{"sqs": "{}"}', MessageStructure="json")
    refused("InvalidParameter", call, TopicArn=TOPIC, Message="no json", MessageStructure="json")
    refused("InvalidParameter", call, TopicArn=TOPIC, Message="")
    same(len(aws.state()["messages"]), before, "messages after nothing but refusals")


# --------------------------------------------------------------------------------------- EC2


def states_of(reservations):
    return {each["InstanceId"]: each["State"]["Name"] for group in reservations for each in group["Instances"]}


@check
def describe_instances(aws):
    client = aws.client("ec2")
    wanted = {id_: host.get("state", "running") for id_, host in aws.hosts.items() if not host.get("forgotten")}
    same((wanted[instance(TERMINATED)], wanted[instance(STOPPED)], instance(FORGOTTEN) in wanted),
         ("terminated", "stopped", False), "the world's odd hosts")
    told = pages(client, "describe_instances", "Reservations", least=6)
    same(states_of(told), wanted, "all")
    ids = [instance(n) for n in (1, TERMINATED, STOPPED, FORGOTTEN, 999)]
    by_id = {"Name": "instance-id", "Values": ids}
    told = by_hand(client.describe_instances, "Reservations", token="NextToken", Filters=[by_id], MaxResults=7)
    same(states_of(told), {id_: wanted[id_] for id_ in ids[:3]}, "by id, unknown ones left out")
    told = by_hand(client.describe_instances, "Reservations", token="NextToken", MaxResults=1000,
                   Filters=[by_id, {"Name": "instance-state-name", "Values": ["stopping", "stopped"]}])
    same(states_of(told), {instance(STOPPED): "stopped"}, "by state")
    whole = client.describe_instances(InstanceIds=[instance(n) for n in range(1, 21)])
    same((len(states_of(whole["Reservations"])), "NextToken" in whole), (20, False), "named ones come in one page")
    groups = Counter(len(group["Instances"]) for group in whole["Reservations"])
    assert len(whole["Reservations"]) > 1 and max(groups) > 1, f"instances per reservation: {groups}"
    first = whole["Reservations"][0]
    same(first["OwnerId"], aws.world["account"], "owner")
    assert first["Instances"][0]["State"]["Code"] == 16 and first["Instances"][0]["LaunchTime"], first
    same(by_hand(aws.client("ec2", OTHER_REGION).describe_instances, "Reservations", token="NextToken"), [], "another region")


@check
def describe_instances_refusals(aws):
    call = aws.client("ec2").describe_instances
    refused("InvalidInstanceID.NotFound", call, InstanceIds=[instance(1), instance(999)])
    refused("InvalidInstanceID.NotFound", call, InstanceIds=[instance(FORGOTTEN)])
    refused("InvalidInstanceID.Malformed", call, InstanceIds=["web-1"])
    refused("InvalidParameterCombination", call, InstanceIds=[instance(1)], MaxResults=5)
    refused("InvalidParameterValue", call, MaxResults=4)
    refused("InvalidParameterValue", call, MaxResults=1001)
    refused("InvalidParameterValue", call, Filters=[{"Name": "colour", "Values": ["red"]}])
    refused("InvalidNextToken", call, NextToken="made-up")
    refused("FilterLimitExceeded", call, Filters=[{"Name": "instance-id", "Values": [instance(n) for n in range(201)]}])


# ----------------------------------------------------------------------------- the state page


@check
def state_page(aws):
    state = aws.state()
    missing = {"calls", "commands", "hosts", "messages", "now"} - set(state)
    assert not missing, f"members missing: {sorted(missing)}"
    assert abs(state["now"] - time.time()) < CLOCK_TOLERANCE, f"now is {state['now']}"
    hosts = json.dumps(state["hosts"])
    assert all(f'"{id_}"' in hosts for id_ in aws.hosts), "a host is missing"
    for name, (command, _) in aws.commands.items():
        assert command in json.dumps(state["commands"]), f"command {name} is missing"


@check
def every_operation_was_called(aws):
    calls = aws.state()["calls"]
    called = Counter((call["service"], call["operation"]) for call in calls if call["status"] == 200)
    wanted = {(service, name) for service, names in OPERATIONS.items() for name in names}
    same(sorted(called), sorted(wanted), "operations answered")
    times = [call["at"] for call in calls]
    assert times == sorted(times), "the calls are not in order"
    errors = Counter(call["error"] for call in calls if call["status"] != 200)
    assert errors["InvalidInstanceId"] and None not in errors, f"errors: {errors}"
    regions = {call["region"] for call in calls}
    same(regions, {REGION, OTHER_REGION}, "regions")
    sent = next(call for call in calls if call["operation"] == "SendCommand" and call["status"] == 200)
    same(len(sent["params"]["InstanceIds"]), 50, "parameters of a call")


def run(aws):
    failed = 0
    for function in CHECKS:
        name = function.__name__.replace("_", " ")
        started = time.monotonic()
        try:
            function(aws)
        except (AssertionError, BotoCoreError, ClientError, LookupError, OSError, TypeError, ValueError) as error:
            failed += 1
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
        else:
            print(f"ok     {name} ({time.monotonic() - started:.1f} s)", flush=True)
    print(f"botocore as a client: {len(CHECKS) - failed} of {len(CHECKS)} checks passed")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sim", required=True, metavar="BINARY", help="the simulator's binary")
    parser.add_argument("--transcripts", metavar="DIR", help="where the server records every exchange")
    options = parser.parse_args()
    server = Server(options.sim, options.transcripts)
    try:
        return run(Aws(server))
    finally:
        server.stop()


if __name__ == "__main__":
    if not __debug__:
        sys.exit("python -O would drop every assertion")
    sys.exit(main())
