#!/usr/bin/env python3
"""Hold recorded exchanges with the simulated AWS against botocore's service models.

    check_transcripts.py [--require-operations] [--invented WORD,WORD...]
                         [--refused-requests-allowed] DIR...

Every *.jsonl file below each DIR is read; every line is one exchange:

    {"service", "region", "operation",
     "request": {"method", "path", "headers", "body"},
     "response": {"status", "headers", "body"}}

`"response": null` stands for a request that got no answer.

Nothing here shares code with the simulator or with the restarter: the shapes come from
botocore alone, so that the two cannot merely agree with each other.
Exit status: 0 without a violation, 1 with any, 2 when called wrongly.
"""

import argparse
import base64
import binascii
import json
import re
import sys
import time
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from urllib.parse import parse_qsl

import botocore.session

# The only operations that the restarter may call.
OPERATIONS = {
    "codepipeline": ["ListActionExecutions"],
    "codedeploy": [
        "GetDeployment",
        "BatchGetDeployments",
        "GetDeploymentGroup",
        "ListDeployments",
        "ListDeploymentTargets",
    ],
    "autoscaling": ["DescribeAutoScalingGroups", "DescribeAutoScalingInstances"],
    "ssm": ["DescribeInstanceInformation", "SendCommand", "ListCommandInvocations"],
    "sns": ["Publish"],
    "ec2": ["DescribeInstances"],
}

JSON_CONTENT_TYPE = "application/x-amz-json-1.1"
QUERY_CONTENT_TYPE = "application/x-www-form-urlencoded"
XML_CONTENT_TYPES = {"text/xml", "application/xml"}

# Errors that every operation may answer besides those that its model declares, with the
# HTTP statuses seen for them. Source: the page "Common Errors" of each service's API
# reference (docs.aws.amazon.com/<service>/latest/APIReference/CommonErrors.html). Two
# generations of that page are in use, which differ in the status: 400 or 401/403/404.
COMMON_ERRORS = {
    "AccessDeniedException": {400, 403},
    "ExpiredTokenException": {400, 403},
    "IncompleteSignature": {400, 403},
    "InternalFailure": {500},
    "MalformedHttpRequestException": {400},
    "NotAuthorized": {400, 401},
    "OptInRequired": {400, 403},
    "RequestAbortedException": {400},
    "RequestEntityTooLargeException": {413},
    "RequestExpired": {400},
    "RequestTimeoutException": {408},
    "ServiceUnavailable": {503},
    "ThrottlingException": {400},
    "UnrecognizedClientException": {400, 403},
    "UnknownOperationException": {400, 404},
    "ValidationError": {400},
}
# What the JSON services answer besides that. Source: smithy.io, "AWS JSON 1.1 protocol",
# and the JSON services' own pages of common errors (CodePipeline, Systems Manager).
COMMON_JSON_ERRORS = COMMON_ERRORS | {
    "ValidationException": {400},
    "SerializationException": {400},
    "InvalidSignatureException": {400, 403},
    "MissingAuthenticationTokenException": {400, 403},
    "ServiceUnavailableException": {503},
}
# What the query services answer besides that. Source: the older form of the same pages
# (Auto Scaling, SNS), and, for the throttling codes, botocore's retry configuration
# (botocore/data/_retry.json), which knows each of them. MalformedInput is what they answer
# to a parameter of the wrong form; no page lists it, many reports of users show it.
COMMON_QUERY_ERRORS = COMMON_ERRORS | {
    "AccessDenied": {403},
    "ExpiredToken": {400, 403},
    "InvalidAction": {400},
    "InvalidClientTokenId": {403},
    "InvalidParameterCombination": {400},
    "InvalidParameterValue": {400},
    "InvalidQueryParameter": {400},
    "MalformedInput": {400},
    "MalformedQueryString": {400, 404},
    "MissingAction": {400},
    "MissingAuthenticationToken": {403},
    "MissingParameter": {400},
    "RequestLimitExceeded": {400, 503},
    "SignatureDoesNotMatch": {403},
    "Throttling": {400},
}
# What EC2 answers, whose model declares no error at all. Source: "Error codes for the Amazon
# EC2 API" (docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html): the common
# client errors, the client errors of the operations that the restarter calls, and the
# server's. That page gives no status; these are what its clients have seen.
EC2_ERRORS = {
    "AuthFailure": {401},
    "Blocked": {403},
    "FilterLimitExceeded": {400},
    "IncompleteSignature": {400},
    "InternalError": {500},
    "InternalFailure": {500},
    "InvalidAction": {400},
    "InvalidInstanceID.Malformed": {400},
    "InvalidInstanceID.NotFound": {400},
    "InvalidNextToken": {400},
    "InvalidParameterCombination": {400},
    "InvalidParameterValue": {400},
    "MalformedQueryString": {400},
    "MissingAction": {400},
    "MissingAuthenticationToken": {403},
    "MissingParameter": {400},
    "OptInRequired": {401},
    "RequestExpired": {400},
    "RequestLimitExceeded": {503},
    "ServiceUnavailable": {503},
    "SignatureDoesNotMatch": {403},
    "UnauthorizedOperation": {403},
    "Unavailable": {503},
    "UnknownParameter": {400},
}
# Common errors that AWS sends without any text.
ERRORS_WITHOUT_TEXT = {"SerializationException", "UnknownOperationException"}

# Enumerations whose answers may hold a value that the model does not know, when that very
# word is named by --invented: the simulator is told to give such values on purpose,
# because AWS adds values before an SDK knows them and the restarter has to show them.
# Each entry names the operation and the shape of the enumeration; they are counted.
UNKNOWN_ENUMS = {
    # A world may override what is reported for one host, word for word ("answer").
    ("ssm", "ListCommandInvocations"): {"CommandInvocationStatus", "CommandPluginStatus"},
    # A host's "ping" is free text in the world.
    ("ssm", "DescribeInstanceInformation"): {"PingStatus", "PlatformType"},
    # A member's "lifecycle" is free text in the world. (The same state is a plain string
    # in DescribeAutoScalingInstances, so that nothing is needed there.)
    ("autoscaling", "DescribeAutoScalingGroups"): {"LifecycleState"},
    # A deployment's status, platform, style and creator are free text in the world.
    ("codedeploy", "GetDeployment"): {
        "ComputePlatform", "DeploymentCreator", "DeploymentStatus", "DeploymentType"},
    ("codedeploy", "BatchGetDeployments"): {
        "ComputePlatform", "DeploymentCreator", "DeploymentStatus", "DeploymentType"},
    ("codedeploy", "GetDeploymentGroup"): {
        "ComputePlatform", "DeploymentStatus", "DeploymentType"},
    # And an action's status and type.
    ("codepipeline", "ListActionExecutions"): {
        "ActionExecutionStatus", "ActionOwner", "ActionCategory"},
    # And a host's state.
    ("ec2", "DescribeInstances"): {"InstanceStateName"},
}

# Shapes that AWS fills with an empty text in answers although the model forbids it: the
# sample answers of API_ListCommandInvocations and API_SendCommand show "" for each.
EMPTY_IN_ANSWERS = {"S3BucketName", "S3Region", "CloudWatchLogGroupName", "NotificationType"}

# Items of one answer: the list (of lists), the request member that limits it, what holds without
# one. Sources: the member descriptions in the API references; CodeDeploy's two lists
# have no such member, 100 is the most that they give.
PAGES = {
    "ListActionExecutions": ("actionExecutionDetails", "maxResults", 100),
    "ListDeployments": ("deployments", None, 100),
    "ListDeploymentTargets": ("targetIds", None, 100),
    "DescribeAutoScalingGroups": ("AutoScalingGroups", "MaxRecords", 50),
    "DescribeAutoScalingInstances": ("AutoScalingInstances", "MaxRecords", 50),
    "DescribeInstanceInformation": ("InstanceInformationList", "MaxResults", 10),
    "ListCommandInvocations": ("CommandInvocations", "MaxResults", 50),
    "DescribeInstances": ("Reservations[].Instances", "MaxResults", 1000),
}

# Epoch seconds of the year 2100: a larger timestamp is one in milliseconds.
LATEST_TIMESTAMP = 4_102_444_800
# Characters of an offending value that are shown.
SHOWN_CHARACTERS = 90

SKIP = object()  # Stands for a value whose decoding has been reported already.


class Problem(tuple):
    """(kind, path, message, example): one violation in one body."""

    __slots__ = ()

    def __new__(cls, path, message, example="", kind="violation"):
        return super().__new__(cls, (kind, path, message, show(example)))


def show(value):
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


# ------------------------------------------------------------------ patterns of the models


@cache
def unicode_class(category):
    """The inside of a character class for Java's \\p{category}, which `re` does not have."""
    ranges, start, previous = [], None, None
    for code in range(sys.maxunicode + 1):
        if not unicodedata.category(chr(code)).startswith(category):
            continue
        if previous is None or code != previous + 1:
            if start is not None:
                ranges.append((start, previous))
            start = code
        previous = code
    ranges.append((start, previous))
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


@cache
def compile_pattern(pattern):
    """A Python pattern for one of the models, which are written in Java's dialect.

    Java reads a surrogate pair in a pattern as one code point, so that XmlString's class
    ends in the range U+10000 to U+10FFFF. Raises re.error where nothing fits.
    """
    translated = pattern.replace("\\uD800\\uDC00-\\uDBFF\\uDFFF", "\\U00010000-\\U0010FFFF")
    translated = re.sub(r"\\p\{(\w+)\}", lambda m: unicode_class(m.group(1)), translated)
    return re.compile(translated, re.ASCII)


# ---------------------------------------------------------------------- validation by shape


class Validator:
    """Compiles shapes into checks of decoded values, one closure for each member path."""

    def __init__(self, answer):
        self.answer = answer  # Answers may be more lenient, see UNKNOWN_ENUMS.
        self.unusable = []  # Patterns that could not be translated.
        self.depth = 0

    def compile(self, shape, path=""):
        self.depth += 1
        assert self.depth < 60, f"the shape of {path} seems to contain itself"
        try:
            make = getattr(self, f"_{shape.type_name}", None)
            assert make, f"{path}: no check for type {shape.type_name}"
            return make(shape, path)
        finally:
            self.depth -= 1

    def _structure(self, shape, path):
        dot = f"{path}." if path else ""
        # Compiled when first met: the models are wide, what is used of them is narrow.
        checks = {}
        members = shape.members
        required = tuple(shape.required_members)
        union = getattr(shape, "is_tagged_union", False)

        def check(value, out):
            if value is SKIP:
                return
            if not isinstance(value, dict):
                out.append(Problem(path, "is not a structure", value))
                return
            for name, member in value.items():
                one = checks.get(name)
                if one is None:
                    if name not in members:
                        out.append(Problem(dot + name, "unknown member", member))
                        continue
                    one = checks[name] = self.compile(members[name], dot + name)
                if member is None:
                    out.append(Problem(dot + name, "is null"))
                else:
                    one(member, out)
            for name in required:
                if name not in value:
                    out.append(Problem(dot + name, "required member is missing"))
            if union and len(value) != 1:
                out.append(Problem(path, "a union holds exactly one member", list(value)))

        return check

    def _list(self, shape, path):
        item = self.compile(shape.member, f"{path}[]")
        sized = self._size(shape, path, "items")

        def check(value, out):
            if value is SKIP:
                return
            if not isinstance(value, list):
                out.append(Problem(path, "is not a list", value))
                return
            sized(len(value), out)
            for each in value:
                if each is None:
                    out.append(Problem(f"{path}[]", "is null"))
                else:
                    item(each, out)

        return check

    def _map(self, shape, path):
        key_check = self.compile(shape.key, f"{path}{{key}}")
        value_check = self.compile(shape.value, f"{path}{{}}")
        sized = self._size(shape, path, "entries")

        def check(value, out):
            if value is SKIP:
                return
            if not isinstance(value, dict):
                out.append(Problem(path, "is not a map", value))
                return
            sized(len(value), out)
            for key, each in value.items():
                key_check(key, out)
                if each is None:
                    out.append(Problem(f"{path}{{}}", "is null"))
                else:
                    value_check(each, out)

        return check

    def _size(self, shape, path, what):
        least, most = shape.metadata.get("min"), shape.metadata.get("max")

        def check(size, out):
            if least is not None and size < least:
                out.append(Problem(path, f"fewer {what} than {least}", str(size)))
            if most is not None and size > most:
                out.append(Problem(path, f"more {what} than {most}", str(size)))

        return check

    def _string(self, shape, path):
        sized = self._size(shape, path, "characters")
        empty_allowed = self.answer and shape.name in EMPTY_IN_ANSWERS
        values = frozenset(shape.metadata.get("enum") or ())
        kind = f"enum:{shape.name}" if self.answer else "violation"
        pattern = shape.metadata.get("pattern")
        expression = None
        if pattern:
            try:
                expression = compile_pattern(pattern)
            except re.error as error:
                self.unusable.append((path, pattern, str(error)))
        passed = set()  # The same few texts come thousands of times.

        def check(value, out):
            if value is SKIP:
                return
            if not isinstance(value, str):
                out.append(Problem(path, "is not a string", value))
                return
            if value in passed or (empty_allowed and not value):
                return
            before = len(out)
            sized(len(value), out)
            if values and value not in values:
                out.append(Problem(path, f"not a value of the enumeration {shape.name}", value, kind))
            # The models' patterns mean the whole text, anchored or not: each service
            # refuses more than that.
            if expression and not expression.fullmatch(value):
                out.append(Problem(path, f"does not match {show(pattern)}", value))
            if len(out) == before and len(passed) < 10_000:
                passed.add(value)

        return check

    def _number(self, shape, path, types, bounds=None):
        least, most = shape.metadata.get("min"), shape.metadata.get("max")

        def check(value, out):
            if value is SKIP:
                return
            if isinstance(value, bool) or not isinstance(value, types):
                out.append(Problem(path, f"is not of type {shape.type_name}", value))
            elif bounds and not bounds[0] <= value <= bounds[1]:
                out.append(Problem(path, f"does not fit the type {shape.type_name}", value))
            elif least is not None and value < least:
                out.append(Problem(path, f"less than {least}", value))
            elif most is not None and value > most:
                out.append(Problem(path, f"more than {most}", value))

        return check

    def _integer(self, shape, path):
        return self._number(shape, path, int, (-(2**31), 2**31 - 1))

    def _long(self, shape, path):
        return self._number(shape, path, int, (-(2**63), 2**63 - 1))

    def _float(self, shape, path):
        return self._number(shape, path, (int, float))

    _double = _float

    def _boolean(self, shape, path):
        def check(value, out):
            if value is not SKIP and not isinstance(value, bool):
                out.append(Problem(path, "is not a boolean", value))

        return check

    def _timestamp(self, shape, path):
        def check(value, out):
            if value is SKIP:
                return
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                out.append(Problem(path, "is not a timestamp in epoch seconds", value))
            elif not 0 <= value < LATEST_TIMESTAMP:
                out.append(Problem(path, "is no time between 1970 and 2100 in seconds", value))

        return check

    def _blob(self, shape, path):
        def check(value, out):
            if isinstance(value, bytes) or value is SKIP:
                return
            if decode_base64(value) is None:
                out.append(Problem(path, "is not a blob in base64", value))

        return check


def decode_base64(value):
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        return None


# --------------------------------------------------------------------------------- decoding


def no_duplicates(pairs):
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        raise ValueError(f"member given twice: {', '.join(twice)}")
    return result


def no_constant(name):
    raise ValueError(f"{name} is no JSON")


def decode_json(body, out, what):
    try:
        value = json.loads(body, object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except ValueError as error:
        out.append(Problem("", f"{what} is not valid JSON: {error}", body))
        return SKIP
    if not isinstance(value, dict):
        out.append(Problem("", f"{what} is not a JSON object", body))
        return SKIP
    return value


INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
ISO_8601 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")


def decode_text(text, shape, path, out):
    """A scalar of the query protocol, which is text in both directions."""
    kind = shape.type_name
    if kind == "string":
        return text
    if kind in ("integer", "long") and INTEGER.fullmatch(text):
        return int(text)
    if kind in ("float", "double") and DECIMAL.fullmatch(text):
        return float(text)
    if kind == "boolean" and text in ("true", "false"):
        return text == "true"
    if kind == "timestamp" and ISO_8601.fullmatch(text):
        try:
            whole = datetime.fromisoformat(text[:19] + "+00:00")
            return whole.timestamp()
        except ValueError:
            pass
    if kind == "blob" and decode_base64(text) is not None:
        return decode_base64(text)
    wanted = "an ISO 8601 time in UTC" if kind == "timestamp" else f"of type {kind}"
    out.append(Problem(path, f"is not {wanted}", text))
    return SKIP


class QueryDecoder:
    """Form parameters (A.member.1.B=…) into plain values, as the shape says."""

    def __init__(self, out):
        self.out = out

    def decode(self, body, shape):
        try:
            pairs = parse_qsl(body, keep_blank_values=True, strict_parsing=True, errors="strict")
        except (ValueError, UnicodeDecodeError) as error:
            self.out.append(Problem("", f"the form cannot be read: {error}", body))
            return None, None, SKIP
        tree, head = {}, {"Action": None, "Version": None}
        for key, text in pairs:
            if key in head:
                if head[key] is not None:
                    self.out.append(Problem(key, "given twice", text))
                head[key] = text
            else:
                self._plant(tree, key, text)
        return head["Action"], head["Version"], self._structure(tree, shape, "")

    def _plant(self, tree, key, text):
        *parents, last = key.split(".")
        for parent in parents:
            tree = tree.setdefault(parent, {})
            if not isinstance(tree, dict):
                self.out.append(Problem(key, "is a value and a prefix at once", text))
                return
        if last in tree:
            self.out.append(Problem(key, "given twice", text))
        tree[last] = text

    def _value(self, node, shape, path):
        kind = shape.type_name
        if kind in ("structure", "list", "map"):
            # An empty list or map is sent as an empty value.
            if node == "":
                return {"structure": {}, "list": [], "map": {}}[kind]
            if not isinstance(node, dict):
                self.out.append(Problem(path, f"is not a {kind}", node))
                return SKIP
            return getattr(self, f"_{kind}")(node, shape, path)
        if isinstance(node, dict):
            self.out.append(Problem(path, f"is a structure, not of type {kind}", next(iter(node))))
            return SKIP
        return decode_text(node, shape, path, self.out)

    def _structure(self, node, shape, path):
        dot = f"{path}." if path else ""
        names = {m.serialization.get("name", n): n for n, m in shape.members.items()}
        result = {}
        for key, child in node.items():
            name = names.get(key)
            if name is None:
                # Left in the result: the validation reports it as unknown.
                result[key] = child
            else:
                result[name] = self._value(child, shape.members[name], dot + name)
        return result

    def _numbered(self, node, path):
        """The children of 1, 2, 3, … in order."""
        wanted = [str(n) for n in range(1, len(node) + 1)]
        if set(node) != set(wanted):
            self.out.append(Problem(path, "the numbers of its items are not 1, 2, 3, …", sorted(node)))
            return []
        return [node[number] for number in wanted]

    def _list(self, node, shape, path):
        if not shape.serialization.get("flattened"):
            word = shape.member.serialization.get("name", "member")
            if list(node) != [word]:
                self.out.append(Problem(path, f"a list's items stand under '{word}'", list(node)))
                return SKIP
            node = node[word]
        if not isinstance(node, dict):
            self.out.append(Problem(path, "the items of a list are numbered", node))
            return SKIP
        return [self._value(each, shape.member, f"{path}[]") for each in self._numbered(node, path)]

    def _map(self, node, shape, path):
        if not shape.serialization.get("flattened"):
            if list(node) != ["entry"] or not isinstance(node["entry"], dict):
                self.out.append(Problem(path, "a map's items stand under 'entry'", list(node)))
                return SKIP
            node = node["entry"]
        key_word = shape.key.serialization.get("name", "key")
        value_word = shape.value.serialization.get("name", "value")
        result = {}
        for entry in self._numbered(node, path):
            if not isinstance(entry, dict) or set(entry) != {key_word, value_word}:
                self.out.append(Problem(path, f"an entry holds {key_word} and {value_word}", entry))
                continue
            key = self._value(entry[key_word], shape.key, f"{path}{{key}}")
            if key in result:
                self.out.append(Problem(f"{path}{{key}}", "given twice", key))
            result[key] = self._value(entry[value_word], shape.value, f"{path}{{}}")
        return result


class Ec2QueryDecoder(QueryDecoder):
    """EC2's dialect: names begin with a capital letter, and every list is flat."""

    def _structure(self, node, shape, path):
        dot = f"{path}." if path else ""
        names = {ec2_name(member, name): name for name, member in shape.members.items()}
        result = {}
        for key, child in node.items():
            name = names.get(key)
            if name is None:
                # For the validation to report; a member's own name is no better on the wire.
                result[f"{key} on the wire"] = child
            else:
                result[name] = self._value(child, shape.members[name], dot + name)
        return result

    def _list(self, node, shape, path):
        return [self._value(each, shape.member, f"{path}[]") for each in self._numbered(node, path)]


def ec2_name(member, name):
    told = member.serialization.get("queryName")
    if told:
        return told
    name = member.serialization.get("name", name)
    return name[0].upper() + name[1:]


class XmlDecoder:
    """The XML of a query service into plain values, as the shape says."""

    def __init__(self, namespace, out):
        self.prefix = f"{{{namespace}}}" if namespace else ""
        self.out = out

    def name(self, element, path):
        """The tag without its namespace, which is checked."""
        if element.attrib:
            self.out.append(Problem(path, "has XML attributes", element.attrib))
        tag = element.tag
        if tag.startswith(self.prefix):
            return tag[len(self.prefix):]
        self.out.append(Problem(path, f"XML namespace is not {self.prefix[1:-1]}", tag))
        return tag.rpartition("}")[2]

    def children(self, element, path):
        """(name, child) of an element that may hold nothing but elements."""
        if (element.text or "").strip() or any((c.tail or "").strip() for c in element):
            self.out.append(Problem(path, "has text between its elements", element.text))
        return [(self.name(child, path), child) for child in element]

    def only(self, element, path, names, optional=()):
        """The named children, each of which stands there once; reports what else is there."""
        found = {}
        for name, child in self.children(element, path):
            where = f"{path}.{name}" if path else name
            if name not in names and name not in optional:
                self.out.append(Problem(where, "unknown XML element"))
            elif name in found:
                self.out.append(Problem(where, "XML element stands there twice"))
            else:
                found[name] = child
        for name in names:
            if name not in found:
                self.out.append(Problem(f"{path}.{name}" if path else name, "XML element is missing"))
        return found

    def text(self, element, path):
        if len(element):
            self.out.append(Problem(path, "has XML elements instead of text", element[0].tag))
            return SKIP
        return element.text or ""

    def value(self, element, shape, path):
        kind = shape.type_name
        if kind in ("structure", "list", "map"):
            return getattr(self, f"_{kind}")(element, shape, path)
        text = self.text(element, path)
        return SKIP if text is SKIP else decode_text(text, shape, path, self.out)

    def _structure(self, element, shape, path):
        dot = f"{path}." if path else ""
        names = xml_names(shape)
        result = {}
        for tag, child in self.children(element, path):
            name = names.get(tag)
            if name is None:
                self.out.append(Problem(dot + tag, "unknown XML element", child.text or ""))
                continue
            member = shape.members[name]
            if member.type_name == "list" and member.serialization.get("flattened"):
                each = self.value(child, member.member, f"{dot}{name}[]")
                result.setdefault(name, []).append(each)
                continue
            if name in result:
                self.out.append(Problem(dot + name, "XML element stands there twice"))
            result[name] = self.value(child, member, dot + name)
        return result

    def _list(self, element, shape, path):
        word = shape.member.serialization.get("name", "member")
        result = []
        for tag, child in self.children(element, path):
            if tag != word:
                self.out.append(Problem(path, f"a list's XML elements are named '{word}'", tag))
                continue
            result.append(self.value(child, shape.member, f"{path}[]"))
        return result

    def _map(self, element, shape, path):
        key_word = shape.key.serialization.get("name", "key")
        value_word = shape.value.serialization.get("name", "value")
        result = {}
        for tag, entry in self.children(element, path):
            if tag != "entry":
                self.out.append(Problem(path, "a map's XML elements are named 'entry'", tag))
                continue
            pair = self.only(entry, path, (key_word, value_word))
            if len(pair) == 2:
                key = self.value(pair[key_word], shape.key, f"{path}{{key}}")
                result[key] = self.value(pair[value_word], shape.value, f"{path}{{}}")
        return result


XML_NAMES = {}


def xml_names(shape):
    """XML tag → member of one structure; the shape objects are kept, so is the answer."""
    known = XML_NAMES.get(id(shape))
    if known is None:
        names = {}
        for name, member in shape.members.items():
            tag = member.serialization.get("name", name)
            if member.type_name == "list" and member.serialization.get("flattened"):
                tag = member.member.serialization.get("name", tag)
            names[tag] = name
        known = XML_NAMES[id(shape)] = (shape, names)
    return known[1]


# ------------------------------------------------------------- limits that no model declares


def limit_items(member, most):
    def check(params, out):
        value = params.get(member)
        if isinstance(value, list) and len(value) > most:
            out.append(Problem(member, f"more items than {most} (API reference)", str(len(value))))

    return check


def limit_number(member, most, least=1):
    def check(params, out):
        value = params.get(member)
        if isinstance(value, int) and not least <= value <= most:
            out.append(Problem(member, f"not between {least} and {most} (API reference)", value))

    return check


def application_with_group(params, out):
    """API_ListDeployments: both names or neither."""
    if ("applicationName" in params) != ("deploymentGroupName" in params):
        out.append(Problem("", "one of applicationName and deploymentGroupName without the other"))


def one_destination(params, out):
    """API_Publish: exactly one of the three."""
    given = [name for name in ("TopicArn", "TargetArn", "PhoneNumber") if name in params]
    if len(given) != 1:
        out.append(Problem("", "exactly one of TopicArn, TargetArn, PhoneNumber", given))


def subject_form(params, out):
    """API_Publish: less than 100 characters, no line break or control character."""
    subject = params.get("Subject")
    if isinstance(subject, str):
        if not 1 <= len(subject) < 100:
            out.append(Problem("Subject", "not 1 to 99 characters (API reference)", str(len(subject))))
        if any(ord(c) < 32 or 127 <= ord(c) for c in subject):
            out.append(Problem("Subject", "not printable ASCII (API reference)", subject))


def message_size(params, out):
    """API_Publish: 262,144 bytes, of which the attributes are a part."""
    size = len(text_bytes(params.get("Message")))
    attributes = params.get("MessageAttributes")
    for name, value in (attributes if isinstance(attributes, dict) else {}).items():
        size += len(text_bytes(name))
        if isinstance(value, dict):
            size += sum(len(text_bytes(part)) for part in value.values())
    if size > 262_144:
        out.append(Problem("Message", "message and attributes over 262,144 bytes (API reference)", str(size)))


def text_bytes(value):
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else b""


def message_structure(params, out):
    """API_Publish: with "json", an object of texts that has "default"."""
    structure = params.get("MessageStructure")
    if structure is None:
        return
    if structure != "json":
        out.append(Problem("MessageStructure", "not 'json' (API reference)", structure))
        return
    try:
        bodies = json.loads(params.get("Message", ""))
    except (TypeError, ValueError):
        bodies = None
    if not isinstance(bodies, dict) or "default" not in bodies:
        out.append(Problem("Message", "no JSON object with 'default' (API reference)", params.get("Message")))
    elif not all(isinstance(body, str) for body in bodies.values()):
        out.append(Problem("Message", "a body that is no string (API reference)", params.get("Message")))


def one_filter_form(params, out):
    """API_DescribeInstanceInformation: the two forms of filters exclude each other, and so do tags and all other keys."""
    if params.get("Filters") and params.get("InstanceInformationFilterList"):
        out.append(Problem("Filters", "together with InstanceInformationFilterList (API reference)"))
    by_tag = {str(each.get("Key")).startswith(("tag:", "tag-key")) for each in params.get("Filters") or [] if isinstance(each, dict)}
    if len(by_tag) > 1:
        out.append(Problem("Filters", "a tag together with another key (API reference)"))


def ids_or_pages(params, out):
    """API_DescribeInstances: ids and a page size exclude each other."""
    if params.get("InstanceIds") and "MaxResults" in params:
        out.append(Problem("InstanceIds", "together with MaxResults (API reference)"))


def filter_values(params, out):
    """Error code FilterLimitExceeded: 200 values in all filters together; and a filter has some."""
    filters = params.get("Filters")
    values = [each.get("Values", []) for each in filters or [] if isinstance(each, dict)]
    if sum(map(len, values)) > 200:
        out.append(Problem("Filters", "more than 200 values (API reference)", str(sum(map(len, values)))))
    if not all(values):
        out.append(Problem("Filters[].Values", "a filter without values"))


DOCUMENTED_LIMITS = {
    "BatchGetDeployments": [limit_items("deploymentIds", 25)],
    "ListDeployments": [application_with_group],
    "DescribeAutoScalingGroups": [limit_number("MaxRecords", 100)],
    "DescribeAutoScalingInstances": [limit_items("InstanceIds", 50), limit_number("MaxRecords", 50)],
    "DescribeInstanceInformation": [one_filter_form],
    "Publish": [one_destination, subject_form, message_size, message_structure],
    "DescribeInstances": [limit_number("MaxResults", 1000, least=5), ids_or_pages, filter_values],
}


# ------------------------------------------------------------------------------- operations


@cache
def service_of(name):
    """(data, model) of a service, as botocore ships them."""
    session = botocore.session.Session()
    return session.get_service_data(name), session.get_service_model(name)


class Operation:
    """One operation's model, and the checks of its requests and answers."""

    def __init__(self, service, name):
        self.service, self.name = service, name
        self.service_data, self.service_model = service_of(service)
        self.model = self.service_model.operation_model(name)
        metadata = self.service_model.metadata
        self.protocol = metadata["protocol"]
        assert self.protocol in ("json", "query", "ec2"), f"{service}: {self.protocol}"
        self.target = f"{metadata.get('targetPrefix')}.{name}"
        self.json_version = metadata.get("jsonVersion")
        self.version = metadata["apiVersion"]
        self.namespace = metadata.get("xmlNamespace")
        if self.protocol == "ec2":
            # The model leaves out the last letter of what every sample answer of the API reference shows.
            self.namespace += "/"
        self.signing_name = self.service_model.signing_name
        self.errors = dict(map(self._declared, self.model.error_shapes))
        self.common_errors = {"json": COMMON_JSON_ERRORS, "query": COMMON_QUERY_ERRORS, "ec2": EC2_ERRORS}[self.protocol]
        self.input = Validator(answer=False)
        self.output = Validator(answer=True)
        self.check_input = self.input.compile(self.model.input_shape)
        self.check_output = self.output.compile(self.model.output_shape)

    def _declared(self, shape):
        """Code on the wire → (shape, statuses, type in XML)."""
        error = shape.metadata.get("error", {})
        model = self.service_data["shapes"][shape.name]  # The shape object hides "fault".
        fault = bool(model.get("fault")) or error.get("httpStatusCode", 400) >= 500
        # The JSON models of these services declare no status: 400, or 500 for a fault.
        status = error.get("httpStatusCode", 500 if fault else 400)
        sender = error.get("senderFault", not fault)
        return error.get("code", shape.name), (shape, {status}, "Sender" if sender else "Receiver")

    # Requests

    def request(self, request):
        """(problems, decoded parameters or None) of a recorded request."""
        out = []
        headers = lower_keys(request["headers"])
        if request["method"] != "POST":
            out.append(Problem("", "the method is not POST", request["method"]))
        if request["path"] != "/":
            out.append(Problem("", "the path is not /", request["path"]))
        decode = self._json_request if self.protocol == "json" else self._query_request
        params = decode(headers, request["body"], out)
        if params is SKIP:
            return out, None
        self.check_input(params, out)
        for limit in DOCUMENTED_LIMITS.get(self.name, ()):
            limit(params, out)
        return out, params

    def _json_request(self, headers, body, out):
        wanted = f"application/x-amz-json-{self.json_version}"
        if headers.get("content-type") != wanted:
            out.append(Problem("", f"content type is not {wanted}", headers.get("content-type")))
        if headers.get("x-amz-target") != self.target:
            out.append(Problem("", f"X-Amz-Target is not {self.target}", headers.get("x-amz-target")))
        return decode_json(body, out, "the request")

    def _query_request(self, headers, body, out):
        content_type = (headers.get("content-type") or "").partition(";")[0].strip().lower()
        if content_type != QUERY_CONTENT_TYPE:
            out.append(Problem("", f"content type is not {QUERY_CONTENT_TYPE}", content_type))
        decoder = Ec2QueryDecoder if self.protocol == "ec2" else QueryDecoder
        action, version, params = decoder(out).decode(body, self.model.input_shape)
        if action != self.name:
            out.append(Problem("Action", f"is not {self.name}", action))
        if version != self.version:
            out.append(Problem("Version", f"is not {self.version}", version))
        return params

    # Answers

    def answer(self, response):
        """(problems, decoded members or None, error code or None) of a recorded answer."""
        out = []
        status, body, headers = response["status"], response["body"], lower_keys(response["headers"])
        if status == 200:
            decode = {"json": self._json_answer, "query": self._query_answer, "ec2": self._ec2_answer}[self.protocol]
            result = decode(headers, body, out)
            if result is SKIP:
                return out, None, None
            self.check_output(result, out)
            return out, result, None
        if not 400 <= status < 600:
            out.append(Problem("", "the status is neither 200 nor an error", status))
            return out, None, str(status)
        decode = {"json": self._json_error, "query": self._query_error, "ec2": self._ec2_error}[self.protocol]
        return out, None, decode(status, headers, body, out)

    def _json_head(self, headers, out):
        if headers.get("content-type") != JSON_CONTENT_TYPE:
            out.append(Problem("", f"content type is not {JSON_CONTENT_TYPE}", headers.get("content-type")))
        if not headers.get("x-amzn-requestid"):
            out.append(Problem("", "no header x-amzn-RequestId"))

    def _json_answer(self, headers, body, out):
        self._json_head(headers, out)
        return decode_json(body, out, "the answer")

    def _json_error(self, status, headers, body, out):
        self._json_head(headers, out)
        members = decode_json(body, out, "the error")
        if members is SKIP:
            return f"(unreadable {status})"
        kind = members.pop("__type", None)
        if not isinstance(kind, str):
            out.append(Problem("__type", "an error names its type", kind))
            return f"(untyped {status})"
        code = kind.rpartition("#")[2]
        self._check_code(code, status, out)
        declared = self.errors.get(code)
        shape = declared[0] if declared else None
        if shape and shape.members:
            Validator(answer=True).compile(shape, code)(members, out)
            if not any(name.lower() == "message" for name in members):
                out.append(Problem(code, "an error without text"))
            return code
        # An error without modelled members is sent with a text all the same.
        texts = [name for name in members if name in ("message", "Message")]
        for name in members:
            if name not in texts:
                out.append(Problem(f"{code}.{name}", "unknown member of an error", members[name]))
        if any(not isinstance(members[name], str) or not members[name] for name in texts):
            out.append(Problem(f"{code}.message", "is not a text", members))
        if len(texts) > 1 or (not texts and not declared and code not in ERRORS_WITHOUT_TEXT):
            out.append(Problem(f"{code}.message", "an error has one text", members))
        return code

    def _xml(self, headers, body, out):
        content_type = (headers.get("content-type") or "").partition(";")[0].strip().lower()
        if content_type not in XML_CONTENT_TYPES:
            out.append(Problem("", "content type is not text/xml", content_type))
        try:
            return ElementTree.fromstring(body.encode())
        except ElementTree.ParseError as error:
            out.append(Problem("", f"is not valid XML: {error}", body))
            return None

    def _query_answer(self, headers, body, out):
        root = self._xml(headers, body, out)
        if root is None:
            return SKIP
        xml = XmlDecoder(self.namespace, out)
        root_name = f"{self.name}Response"
        if xml.name(root, "") != root_name:
            out.append(Problem("", f"the XML root is not {root_name}", root.tag))
            return SKIP
        wrapper = self.model.output_shape.serialization["resultWrapper"]
        parts = xml.only(root, "", (wrapper, "ResponseMetadata"))
        if "ResponseMetadata" in parts:
            metadata = xml.only(parts["ResponseMetadata"], "ResponseMetadata", ("RequestId",))
            if "RequestId" in metadata and not xml.text(metadata["RequestId"], "RequestId"):
                out.append(Problem("ResponseMetadata.RequestId", "is empty"))
        if wrapper not in parts:
            return SKIP
        return xml.value(parts[wrapper], self.model.output_shape, "")

    def _ec2_answer(self, headers, body, out):
        root = self._xml(headers, body, out)
        if root is None:
            return SKIP
        xml = XmlDecoder(self.namespace, out)
        if xml.name(root, "") != f"{self.name}Response":
            out.append(Problem("", f"the XML root is not {self.name}Response", root.tag))
            return SKIP
        ids = [child for child in root if child.tag == f"{xml.prefix}requestId"]
        if len(ids) != 1 or not ids[0].text:
            out.append(Problem("requestId", "an answer has one", str(len(ids))))
        for child in ids:
            root.remove(child)
        return xml.value(root, self.model.output_shape, "")

    def _ec2_error(self, status, headers, body, out):
        root = self._xml(headers, body, out)
        if root is None:
            return f"(unreadable {status})"
        xml = XmlDecoder("", out)
        if xml.name(root, "") != "Response":
            out.append(Problem("", "the XML root is not Response", root.tag))
            return f"(untyped {status})"
        parts = xml.only(root, "", ("Errors", "RequestID"))
        if "RequestID" in parts and not xml.text(parts["RequestID"], "RequestID"):
            out.append(Problem("RequestID", "is empty"))
        error = xml.only(parts["Errors"], "Errors", ("Error",)).get("Error") if "Errors" in parts else None
        if error is None:
            return f"(untyped {status})"
        text = {name: xml.text(each, f"Error.{name}") for name, each in xml.only(error, "Error", ("Code", "Message")).items()}
        if "Message" in text and not text["Message"]:
            out.append(Problem("Error.Message", "is empty"))
        if "Code" in text:
            self._check_code(text["Code"], status, out)
        return text.get("Code") or f"(untyped {status})"

    def _query_error(self, status, headers, body, out):
        root = self._xml(headers, body, out)
        if root is None:
            return f"(unreadable {status})"
        xml = XmlDecoder(self.namespace, out)
        if xml.name(root, "") != "ErrorResponse":
            out.append(Problem("", "the XML root is not ErrorResponse", root.tag))
            return f"(untyped {status})"
        parts = xml.only(root, "", ("Error", "RequestId"))
        if "RequestId" in parts and not xml.text(parts["RequestId"], "RequestId"):
            out.append(Problem("RequestId", "is empty"))
        if "Error" not in parts:
            return f"(untyped {status})"
        error = xml.only(parts["Error"], "Error", ("Type", "Code", "Message"), optional=("Detail",))
        text = {name: xml.text(element, f"Error.{name}") for name, element in error.items()}
        code = text.get("Code") or f"(untyped {status})"
        if "Message" in text and not text["Message"]:
            out.append(Problem("Error.Message", "is empty"))
        if "Code" in text:
            self._check_code(code, status, out)
        declared = self.errors.get(code)
        party = declared[2] if declared else "Sender" if status < 500 else "Receiver"
        if text.get("Type", party) != party:
            out.append(Problem("Error.Type", f"is not {party} for {code}", text["Type"]))
        return code

    def _check_code(self, code, status, out):
        if code in self.errors:
            statuses = self.errors[code][1]
        elif code in self.common_errors:
            statuses = self.common_errors[code]
        else:
            out.append(Problem("", "an error that the operation does not declare, nor common", code))
            return
        if status not in statuses:
            wanted = " or ".join(map(str, sorted(statuses)))
            out.append(Problem("", f"the status of {code} is not {wanted}", status))

    def page_limit(self, params):
        """Items that an answer to these parameters may hold, or None."""
        page = PAGES.get(self.name)
        if not page:
            return None
        asked = (params or {}).get(page[1]) if page[1] else None
        return asked if isinstance(asked, int) else page[2]

    def items(self, result):
        """Items of an answer that has pages, or None."""
        page = PAGES.get(self.name)
        if not page:
            return None
        *outer, last = page[0].split("[].")
        holders = [result] if result else []
        for name in outer:
            holders = [each for holder in holders for each in holder.get(name, []) if isinstance(each, dict)]
        lists = [holder.get(last) for holder in holders]
        return sum(len(listed) for listed in lists if isinstance(listed, list))


def lower_keys(headers):
    return {key.lower(): value for key, value in headers.items()}


# ------------------------------------------------------------------------------ the exchanges


CREDENTIAL = re.compile(r"Credential=[^/]+/\d{8}/([^/]+)/([^/]+)/aws4_request")


class Checker:
    """Collects what a run of exchanges breaks. Identical bodies are judged once."""

    def __init__(self, invented=(), refused_requests_allowed=False):
        self.invented = frozenset(invented)
        self.refused_requests_allowed = refused_requests_allowed
        self.exchanges = 0
        self.requests, self.answers, self.unanswered = Counter(), Counter(), Counter()
        self.errors = {}  # (service, operation) → Counter of codes
        self.violations = {}  # what → [count, where first, example]
        self.unknown_enums, self.refused = Counter(), Counter()
        self._operations, self._requests, self._answers = {}, {}, {}

    def exchange(self, exchange, where):
        """Judges one decoded line of a transcript."""
        self.exchanges += 1
        form = form_of(exchange)
        if form:
            self._add("", "", "transcript", Problem("", f"not an exchange: {form}"), where)
            return
        service, name = exchange["service"], exchange["operation"]
        if name not in OPERATIONS.get(service, ()):
            problem = Problem("", "not one of the 13 operations that the restarter may call", name)
            self._add(service, name, "request", problem, where)
            return
        operation = self._operation(service, name)
        key = (service, name)
        self.requests[key] += 1
        request_problems, limit = self._judge_request(operation, exchange["request"])
        request_problems = request_problems + signature(operation, exchange)
        response = exchange["response"]
        refused = False
        if response is None:
            self.unanswered[key] += 1
        else:
            answer_problems, items, code = self._judge_answer(operation, response)
            refused = code is not None and 400 <= response["status"] < 500
            self._count_answer(key, code)
            for problem in answer_problems:
                self._answer_problem(key, problem, where)
            if items is not None and limit is not None and items > limit:
                problem = Problem(PAGES[name][0], "more items than one page may hold", f"{items} of {limit}")
                self._add(*key, "answer", problem, where)
        for problem in request_problems:
            if refused and self.refused_requests_allowed:
                self.refused[(*key, problem[1], problem[2], code)] += 1
            else:
                self._add(*key, "request", problem, where)

    def _operation(self, service, name):
        operation = self._operations.get((service, name))
        if operation is None:
            operation = self._operations[service, name] = Operation(service, name)
        return operation

    def _judge_request(self, operation, request):
        headers = lower_keys(request["headers"])
        key = (operation.service, operation.name, request["method"], request["path"], request["body"],
               headers.get("content-type"), headers.get("x-amz-target"))
        judged = self._requests.get(key)
        if judged is None:
            problems, params = operation.request(request)
            judged = self._requests[key] = (problems, operation.page_limit(params))
        return judged

    def _judge_answer(self, operation, response):
        headers = lower_keys(response["headers"])
        key = (operation.service, operation.name, response["status"], response["body"],
               headers.get("content-type"), bool(headers.get("x-amzn-requestid")))
        judged = self._answers.get(key)
        if judged is None:
            problems, result, code = operation.answer(response)
            judged = self._answers[key] = (problems, operation.items(result), code)
        return judged

    def _count_answer(self, key, code):
        if code is None:
            self.answers[key] += 1
        else:
            self.errors.setdefault(key, Counter())[code] += 1

    def _answer_problem(self, key, problem, where):
        kind, path, _, example = problem
        if kind.startswith("enum:") and example in self.invented:
            if kind[len("enum:"):] in UNKNOWN_ENUMS.get(key, ()):
                self.unknown_enums[(*key, path, example)] += 1
                return
        self._add(*key, "answer", problem, where)

    def _add(self, service, operation, side, problem, where):
        _, path, message, example = problem
        what = (service, operation, side, path, message)
        found = self.violations.get(what)
        if found:
            found[0] += 1
        else:
            self.violations[what] = [1, where, example]

    def finish(self, require_operations=False):
        """The violations of the run as a whole."""
        if not self.exchanges:
            self._add("", "", "transcript", Problem("", "no exchange at all"), "-")
        if require_operations:
            for service, names in OPERATIONS.items():
                for name in names:
                    if not self.answers[service, name]:
                        problem = Problem("", "was never answered successfully in these transcripts")
                        self._add(service, name, "transcript", problem, "-")
        for (service, name), operation in self._operations.items():
            for path, pattern, error in operation.input.unusable + operation.output.unusable:
                problem = Problem(path, f"pattern of the model cannot be read: {error}", pattern)
                self._add(service, name, "model", problem, "-")

    def read(self, directory):
        """Judges every transcript below a directory; returns how many there are."""
        files = sorted(Path(directory).rglob("*.jsonl"))
        for file in files:
            with file.open(encoding="utf-8") as lines:
                for number, line in enumerate(lines, 1):
                    self._line(line, f"{file}:{number}")
        return len(files)

    def _line(self, line, where):
        try:
            exchange = json.loads(line)
        except ValueError as error:
            self._add("", "", "transcript", Problem("", "a line that is not JSON", str(error)), where)
            return
        self.exchange(exchange, where)


def form_of(exchange):
    """What keeps a line from being an exchange, or None."""
    if not isinstance(exchange, dict):
        return "not an object"
    for name in ("service", "region", "operation"):
        if not isinstance(exchange.get(name), str):
            return f"'{name}' is not a string"
    request, response = exchange.get("request"), exchange.get("response", SKIP)
    parts = {"request": (request, {"method": str, "path": str, "headers": dict, "body": str})}
    if response is not None:
        parts["response"] = (response, {"status": int, "headers": dict, "body": str})
    for name, (part, members) in parts.items():
        if not isinstance(part, dict):
            return f"'{name}' is not an object"
        for member, kind in members.items():
            if not isinstance(part.get(member), kind):
                return f"'{name}.{member}' is not of type {kind.__name__}"
        if not all(isinstance(value, str) for value in part["headers"].values()):
            return f"'{name}.headers' holds more than strings"
    return None


def signature(operation, exchange):
    """A signed request is signed for its service and region; others are not looked at."""
    found = CREDENTIAL.search(lower_keys(exchange["request"]["headers"]).get("authorization", ""))
    if not found:
        return []
    wanted = (exchange["region"], operation.signing_name)
    if found.groups() == wanted:
        return []
    return [Problem("", f"signed for another service or region than {wanted[1]} in {wanted[0]}", str(found.groups()))]


# --------------------------------------------------------------------------------- the report


def print_table(checker, write):
    rows = [("operation", "requests", "answers", "errors by code")]
    for key in sorted(set(checker.requests)):
        errors = checker.errors.get(key, {})
        told = [f"{code} {n}" for code, n in sorted(errors.items())]
        if checker.unanswered[key]:
            told.append(f"unanswered {checker.unanswered[key]}")
        rows.append((".".join(key), str(checker.requests[key]), str(checker.answers[key]), ", ".join(told)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, requests, answers, errors in rows:
        write(f"{name:<{widths[0]}}  {requests:>{widths[1]}}  {answers:>{widths[2]}}  {errors}".rstrip())


def print_tolerated(checker, write):
    for (service, name, path, value), n in sorted(checker.unknown_enums.items()):
        write(f"allowed: {service}.{name} answer {path}: unknown value {value!r} ({n} times)")
    for (service, name, path, message, code), n in sorted(checker.refused.items()):
        write(f"allowed: {service}.{name} request {path}: {message}: refused with {code} ({n} times)")


def print_violations(checker, write):
    for (service, name, side, path, message), (n, where, example) in sorted(checker.violations.items()):
        place = " ".join(part for part in (f"{service}.{name}".strip("."), side, path) if part)
        shown = f": {example}" if example else ""
        write(f"VIOLATION {place}: {message}{shown} ({n} times, first at {where})")


def main(arguments=None, write=print):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", nargs="+", metavar="DIR")
    parser.add_argument("--require-operations", action="store_true",
                        help="fail when one of the 13 operations was never answered successfully")
    parser.add_argument("--invented", default="", metavar="WORD,WORD...",
                        help="count these unknown values of the enumerations listed in UNKNOWN_ENUMS")
    parser.add_argument("--refused-requests-allowed", action="store_true",
                        help="count requests outside the model that were answered with a 4xx error")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    checker = Checker(options.invented.split(","), options.refused_requests_allowed)
    files = sum(checker.read(directory) for directory in options.directories)
    checker.finish(options.require_operations)
    print_table(checker, write)
    print_tolerated(checker, write)
    print_violations(checker, write)
    seconds = time.monotonic() - started
    write(f"{checker.exchanges} exchanges in {files} transcripts, "
          f"{len(checker.violations)} kinds of violation, {seconds:.1f} s")
    return 1 if checker.violations else 0


if __name__ == "__main__":
    sys.exit(main(write=partial(print, flush=True)))
