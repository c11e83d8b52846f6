"""What src/ calls, and what the function's role allows: the same operations, by name. tests/policy asks more, whether each call is allowed with its resource
and under its conditions, but only about calls that some story makes; this is about the source."""

import re
import tomllib

import botocore
import botocore.session

import stacks
from agreement import without_comments

# What AWS's services do in the role's name, so that src/ does not call it: Lambda keeps failed invocations and writes the log, SNS and SQS use the keys.
BY_SERVICES = {"sqs:SendMessage", "logs:CreateLogStream", "logs:PutLogEvents", "kms:Decrypt", "kms:GenerateDataKey"}


def check(finder, root, translation):
    """Over all stacks, the role allows exactly what src/ calls and what AWS's services do for it."""
    allowed = set()
    for values in stacks.every_set():
        for policy in stacks.stack(translation, values)["Resources"]["FunctionRole"]["Properties"]["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                if statement["Effect"] == "Allow":
                    allowed.update([statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"])
    called = called_operations(finder, root)
    for name, (operations, path) in called.items():
        finder.expect(operations & allowed, f"{path} calls {name}, which the role does not allow")
    wanted = {operation for operations, _ in called.values() for operation in operations}
    for action in sorted(allowed - BY_SERVICES - wanted):
        finder.expect(False, f"the role allows {action}, which src/ does not call")
    for action in sorted(BY_SERVICES - allowed):
        finder.expect(False, f"the role does not allow {action}, which an AWS service does in its name")


def called_operations(finder, root):
    """The operations that src/ calls, as name → (`service:Operation` of every service that has one of this name, the first file that calls it); found as
    `.operation_name()` of the services that Cargo.toml depends on."""
    dependencies = tomllib.loads((root / "Cargo.toml").read_text())["dependencies"]
    services = [name.removeprefix("aws-sdk-") for name in dependencies if name.startswith("aws-sdk-")]
    finder.expect(services, "Cargo.toml depends on no AWS service")
    session = botocore.session.get_session()
    known = {}
    for service in services:
        for operation in session.get_service_model(service).operation_names:
            known.setdefault(botocore.xform_name(operation), set()).add(f"{service}:{operation}")
    called = {}
    for path in sorted((root / "src").rglob("*.rs")):
        for name in re.findall(r"\.\s*([a-z][a-z0-9_]*)\s*\(\s*\)", without_comments(path.read_text())):
            if name in known:
                called.setdefault(name, (known[name], path.relative_to(root)))
    return called
