"""An emulator of AWS that others wrote (ministack), on a loopback port: its EventBridge decides whether an event fits a pattern, its CloudFormation whether
a set of parameters is allowed and what a rule's pattern becomes."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.request

import botocore.config
import botocore.exceptions
import botocore.session

from stacks import ACCOUNT, REGION

# What its environment is made from.
REQUIREMENTS = "tests/e2e/requirements.txt"
# Seconds until it answers; it takes one.
START_LIMIT = 60
# Seconds until it has ended after it was asked to.
END_LIMIT = 10
# Seconds until a stack of two rules is made; it takes a tenth of one.
STACK_LIMIT = 30


class Refused(Exception):
    """The emulated AWS refuses a request; the text is its message."""


@contextlib.contextmanager
def running(python):
    """The emulator, run by the interpreter of its own environment, and ended whatever happens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        # It would also listen on a fixed port, for devices.
        environment.update(BIND_HOST="127.0.0.1", GATEWAY_PORT=str(port), IOT_MTLS_ENABLED="0", STATE_DIR=folder, TMPDIR=folder)
        with log.open("wb") as output:
            process = subprocess.Popen([python, "-m", "ministack"], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until_healthy(port, process, log)
            yield Emulator(port)
        finally:
            process.terminate()
            try:
                process.wait(END_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_healthy(port, process, log):
    """Asks for its health until it answers."""
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/_ministack/health", timeout=5):
            return
        time.sleep(0.1)
    raise RuntimeError(f"the emulator does not answer; its log ends with:\n{log.read_text()[-2000:]}")


class Emulator:
    """What is asked of the emulator, through botocore. No stack is ever made twice, so each has a number for a name."""

    def __init__(self, port):
        self.stacks = 0
        session = botocore.session.get_session()
        session.set_credentials(ACCOUNT, "none")
        options = {
            "region_name": REGION,
            "endpoint_url": f"http://127.0.0.1:{port}",
            "config": botocore.config.Config(retries={"total_max_attempts": 1}, proxies={}),
        }
        self.client = lambda service: session.create_client(service, **options)
        self.cloudformation = self.client("cloudformation")
        self.events = self.client("events")

    def fits(self, pattern, event):
        """Whether the event fits the pattern."""
        return self.events.test_event_pattern(EventPattern=pattern, Event=json.dumps(event))["Result"]

    def allow(self, template, values):
        """Raises what CloudFormation says if it does not take these values for the template's parameters."""
        self.stacks += 1
        with refusals():
            self.cloudformation.create_change_set(ChangeSetName="allowed", ChangeSetType="CREATE", **self.request(template, values))

    def patterns(self, template, values):
        """Makes the stack, and gives the pattern of each rule that it has then, by the rule's name in the template."""
        rules = [resource for resource in self.made(template, values) if resource["ResourceType"] == "AWS::Events::Rule"]
        return {rule["LogicalResourceId"]: self.events.describe_rule(Name=rule["PhysicalResourceId"])["EventPattern"] for rule in rules}

    def made(self, template, values):
        """Makes the stack, and gives its resources."""
        self.stacks += 1
        request = self.request(template, values)
        with refusals():
            self.cloudformation.create_stack(**request)
        end = time.monotonic() + STACK_LIMIT
        while (status := self.cloudformation.describe_stacks(StackName=request["StackName"])["Stacks"][0])["StackStatus"] == "CREATE_IN_PROGRESS":
            if time.monotonic() > end:
                raise RuntimeError(f"the stack is not made within {STACK_LIMIT} s")
            time.sleep(0.02)
        if status["StackStatus"] != "CREATE_COMPLETE":
            raise RuntimeError(f"the stack is {status['StackStatus']}: {status.get('StackStatusReason')}")
        return self.cloudformation.describe_stack_resources(StackName=request["StackName"])["StackResources"]

    def request(self, template, values):
        """What CreateStack and CreateChangeSet have in common."""
        return {
            "StackName": f"stack-{self.stacks}",
            "TemplateBody": json.dumps(template),
            "Parameters": [{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()],
        }


@contextlib.contextmanager
def refusals():
    """A client's error becomes its message."""
    try:
        yield
    except botocore.exceptions.ClientError as error:
        raise Refused(error.response["Error"]["Message"]) from error
