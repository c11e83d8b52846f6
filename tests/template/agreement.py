"""What the template and the rest of the repository say about the same thing: the function itself (facts.py), docs/, README.md, document/README.md, Cargo.toml."""

import re
import tomllib

import botocore.session

import facts

# Where the settings and the outcomes are told.
REFERENCE = "docs/reference.md"
# Settings that no parameter gives: the table's word for them, and the resource whose reference they are.
OWN_RESOURCES = {"DOCUMENT_NAME": ("own document", "RestartDocument"), "WINDOWS_DOCUMENT_NAME": ("own document", "WindowsRestartDocument")}
# Settings that are made of their parameter, or whose parameter may be left out for a resource of the stack's own. All others are their parameter's value, and nothing else.
UNLESS_GIVEN = {
    "TOPIC_ARN": {"Fn::If": ["OwnTopic", {"Ref": "Topic"}, {"Ref": "TopicArn"}]},
    "INSTANCE_TAG": {"Fn::If": ["TaggedOnly", {"Fn::Sub": "AgentRestart=${InstanceTagValue}"}, ""]},
}

# What each parameter that is checked by a pattern takes and refuses, at the edges of the accepted form.
TOPICS = (
    ["", "arn:aws:sns:eu-west-1:123456789012:restarts", "arn:aws-us-gov:sns:us-gov-west-1:123456789012:a_b-c"],
    ["restarts", "arn:aws:sns:eu-west-1:123456789012:restarts.fifo", "arn:aws:sqs:eu-west-1:123456789012:restarts", "arn:aws:sns:eu-west-1:12345:restarts"],
)
CODEDEPLOY_NAMES = (["", "a", "My_App-1+2=3,4.5@6", "a" * 100], ["a" * 101, 'a"b', "a/b", "a b", " a", "a\n"])
EDGES = {
    "TopicArn": TOPICS,
    "AlarmTopicArn": TOPICS,
    "MaxConcurrency": (["1", "50", "1%", "50%", "100%"], ["", "0", "0%", "101%", "-1", "1.5", "50 %", "01", "all"]),
    "MaxErrors": (["0", "1", "50", "0%", "10%", "100%"], ["", "101%", "-1", "1.5", "10 %", "01", "none"]),
    # CloudFormation holds the pattern against each name of the list.
    "PipelineNames": (["", "my-pipeline", "A.b_c@9", "p" * 100], ["p" * 101, "a b", "a*", "a?", "a:b", "a/b", "${a}"]),
    "ScheduleExpression": (
        ["", "rate(7 days)", "cron(0 3 ? * SUN *)", "cron(0/15 8-17 ? * MON#2 2027-2030)", "cron(0 3 L * ? *)", "at(2027-01-31T03:00:00)"],
        ["rate()", "7 days", "0 3 * * 0", "rate(7 days", "cron(0 3 ? * SUN *) ", "every(7 days)", 'rate("7")'],
    ),
    "ScheduleApplication": CODEDEPLOY_NAMES,
    "ScheduleDeploymentGroup": CODEDEPLOY_NAMES,
    "TopicKeyArn": (
        ["", "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab", "arn:aws-cn:kms:cn-north-1:123456789012:key/mrk-1234abcd"],
        ["alias/aws/sns", "arn:aws:kms:eu-west-1:123456789012:alias/topics", "1234abcd-12ab-34cd-56ef-1234567890ab", "arn:aws:kms:eu-west-1:123456789012:key/*"],
    ),
    "AlertEmail": (["", "somebody@example.com", "a+b@c.d"], ["somebody", "@example.com", "somebody@", "a@b@c", "a b@c.d"]),
    "InstanceTagValue": (["", "true", "a+b=c.d:e/f@g_h-i", "v" * 256], ["v" * 257, "after deployment", " true", " ", "*", "a?", "${aws:PrincipalTag/x}", "a,b"]),
    "CoveredAccounts": (
        ["", "123456789012", "123456789012,210987654321", ",".join(["123456789012"] * 150)],
        [",", "123456789012,", "123456789012, 210987654321", "12345678901", "1234567890123", "all", ",".join(["123456789012"] * 151)],
    ),
    "PermissionsBoundaryArn": (
        ["", "arn:aws:iam::123456789012:policy/boundary", "arn:aws:iam::aws:policy/PowerUserAccess", "arn:aws-cn:iam::123456789012:policy/team/b"],
        ["boundary", "arn:aws:iam::123456789012:role/boundary", "arn:aws:iam::123456789012:policy/", "arn:aws:iam:eu-west-1:123456789012:policy/b"],
    ),
}
# The names that a service gives itself: whatever a pattern takes, the service's own model takes too.
SERVICE_SHAPES = {
    "PipelineNames": ("codepipeline", "PipelineName"),
    "ScheduleApplication": ("codedeploy", "ApplicationName"),
    "ScheduleDeploymentGroup": ("codedeploy", "DeploymentGroupName"),
    "ScheduleExpression": ("scheduler", "ScheduleExpression"),
}

# What the Serverless Application Repository wants to know (AWS SAM, "AWS::ServerlessRepo::Application").
PUBLISHED = ["Name", "Description", "Author", "SpdxLicenseId", "LicenseUrl", "ReadmeUrl", "Labels", "SemanticVersion"]
# Characters of a parameter's description, and of a template's (CloudFormation, quotas).
MAX_PARAMETER_DESCRIPTION = 4000
MAX_DESCRIPTION = 1024


def check(finder, root, template):
    """Settings, outcomes, stack parameters, alarms, console and publication say the same everywhere."""
    settings = check_settings(finder, root, template)
    check_outcomes(finder, root)
    check_results(finder, root)
    check_stack_parameters(finder, root, template, settings)
    check_alarms(finder, root, template)
    check_outputs(finder, root, template)
    check_parameters(finder, template["Parameters"])
    check_console(finder, template)
    check_publication(finder, root, template)


def table(finder, root, path, head):
    """The rows below the head `| a | b |` of a Markdown file, each as a list of its cells."""
    if not finder.expect((root / path).exists(), f"{path} is missing; it should have a table `{head}`"):
        return []
    lines = (root / path).read_text().splitlines()
    cells = [cell.strip() for cell in head.strip("|").split("|")]
    split = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    heads = [index for index, row in enumerate(split) if row == cells]
    if not finder.expect(len(heads) == 1, f"{path} has {len(heads)} tables `{head}`, not one"):
        return []
    rows = []
    for line, row in zip(lines[heads[0] + 2 :], split[heads[0] + 2 :]):
        if not line.startswith("|"):
            break
        rows.append(row)
    return rows


def code(cell):
    """The first word in backticks, or nothing."""
    return (re.findall(r"`([^`]*)`", cell) or [None])[0]


def check_settings(finder, root, template):
    """The table, the parameters, the function's environment and what the function reads are the same settings; gives the parameters that are settings."""
    parameters = template["Parameters"]
    environment = template["Resources"]["RestartFunction"]["Properties"]["Environment"]["Variables"]
    rows = table(finder, root, REFERENCE, "| environment | parameter | default | accepted |")
    names = [code(row[0]) for row in rows]
    finder.expect(names == list(environment), f"the settings of {REFERENCE} {names} are not the function's environment {list(environment)}, in this order")
    read = {setting["variable"]: setting for setting in facts.read()["settings"]}
    finder.expect(set(read) == set(environment), f"the function reads {sorted(read)}, the template hands over {sorted(environment)}")
    settings = []
    for variable, parameter_cell, default_cell, accepted in ([code(row[0]), *row[1:4]] for row in rows):
        default = code(default_cell)
        own = read.get(variable, {"default": None, "accepted": ""})
        # An empty variable counts as absent, so an empty default is one that the table has no word for.
        finder.expect((own["default"] or None) == default, f"default of {variable}: {REFERENCE} {default!r}, the function {own['default']!r}")
        finder.expect((own["default"] is None) == (default_cell == "required"), f"{REFERENCE} says of {variable}: {default_cell}; the function's default is {own['default']!r}")
        if variable in OWN_RESOURCES:
            word, resource = OWN_RESOURCES[variable]
            finder.expect(parameter_cell == word, f"{REFERENCE} says that {variable} comes from {parameter_cell!r}, it is the stack's {word!r}")
            finder.expect(environment.get(variable) == {"Ref": resource}, f"{variable} is not the name of the stack's own {resource}")
            continue
        name = code(parameter_cell)
        settings.append(name)
        if not finder.expect(name in parameters, f"{REFERENCE} names the parameter {name} of {variable}, the template has none"):
            continue
        parameter = parameters[name]
        found = environment.get(variable)
        finder.expect(found == UNLESS_GIVEN.get(variable, {"Ref": name}), f"{variable} is {found}, not the value of the parameter {name}")
        expect_default(finder, REFERENCE, name, parameter, default)
        check_accepted(finder, name, parameter, REFERENCE, accepted)
        check_accepted(finder, name, parameter, "the function", own["accepted"])
    return settings


def check_accepted(finder, name, parameter, who, accepted):
    """What is said to be accepted is what the parameter accepts."""
    if "AllowedValues" in parameter:
        values = [str(value) for value in parameter["AllowedValues"]]
        finder.expect(set(values) <= set(re.findall(r"[\w-]+", accepted)), f"{name} allows {values}, {who} says: {accepted}")
    elif parameter["Type"] == "Number":
        span = re.search(r"(\d[\d,]*)(?: \([^)]*\))? to (\d[\d,]*)", accepted)
        limits = tuple(int(limit.replace(",", "")) for limit in span.groups()) if span else None
        own = (parameter["MinValue"], parameter["MaxValue"])
        finder.expect(limits == own, f"{name} allows {own[0]} to {own[1]}, {who} says: {accepted}")
    elif name in ("MaxConcurrency", "MaxErrors"):
        for value in re.findall(r"\d+%?", accepted):
            finder.expect(re.fullmatch(parameter["AllowedPattern"], value), f"{who} says that {name} accepts {value!r}, the template refuses it")


def check_outcomes(finder, root):
    """The table of outcomes holds every outcome, those that need attention last, and every code under its outcome; it calls critical what is."""
    rows = table(finder, root, REFERENCE, "| outcome | what it means | what to do |")
    named = [code(row[0]) for row in rows]
    needs = {outcome["word"]: outcome["needsAttention"] for outcome in facts.read()["outcomes"]}
    if not rows or not finder.expect(set(named) == set(needs), f"{REFERENCE} has the outcomes {sorted(map(str, set(named)))}, the function {sorted(needs)}"):
        return
    finder.expect([needs[name] for name in named] == sorted(needs[name] for name in named), f"{REFERENCE} mixes outcomes that need attention with those that do not")
    told, critical = set(), set()
    for name, row in zip(named, rows):
        # In the first cell, or each before what it means: "20: a lifecycle event, 21: an update".
        codes = {int(number) for number in re.findall(r"\d+", row[0]) + re.findall(r"\b(\d+): ", row[1])}
        told |= {(name, number) for number in codes}
        critical |= codes if "critical" in row[0] else set()
    results = [result for result in facts.read()["results"] if result["code"]]
    known = {(result["outcome"], result["code"]) for result in results}
    finder.expect(told == known, f"{REFERENCE} has the codes {sorted(told - known)}, which the function has not, and not {sorted(known - told)}, which it has")
    known = {result["code"] for result in results if result["severity"] == "critical"}
    finder.expect(critical == known, f"{REFERENCE} calls the codes {sorted(critical)} critical, the function {sorted(known)}")


def check_results(finder, root):
    """document/README.md says about every result of the scripts what it means, and about no other."""
    path = "document/README.md"
    rows = table(finder, root, path, "| exit code | `result` | what it means | what to do |")
    told = sorted((row[0], code(row[1])) for row in rows)
    known = sorted((str(result["code"]), result["word"]) for result in facts.read()["results"])
    finder.expect(not rows or told == known, f"{path} tells of the results {told}, the function knows {known}")


def check_stack_parameters(finder, root, template, settings):
    """The table of docs/deploy.md holds the parameters that are no setting of the function, in the template's order, with their defaults."""
    path = "docs/deploy.md"
    rows = table(finder, root, path, "| parameter | default | what it does |")
    own = [name for name in template["Parameters"] if name not in settings]
    names = [code(row[0]) for row in rows]
    if not rows or not finder.expect(names == own, f"{path} has the parameters {names}, the template those of the stack {own}, in this order"):
        return
    for name, default, text in ([code(row[0]), *row[1:3]] for row in rows):
        parameter = template["Parameters"][name]
        expect_default(finder, path, name, parameter, code(default))
        finder.expect(text, f"{path} does not say what {name} does")


def check_alarms(finder, root, template):
    """docs/deploy.md says what to do about every alarm, and about no other."""
    path = "docs/deploy.md"
    rows = table(finder, root, path, "| alarm | what it means | what to do |")
    told = sorted(name for row in rows for name in re.findall(r"`(\w+)`", row[0]))
    alarms = sorted(name for name, resource in template["Resources"].items() if resource["Type"] == "AWS::CloudWatch::Alarm")
    finder.expect(not rows or told == alarms, f"{path} tells of the alarms {told}, the template has {alarms}")


def check_outputs(finder, root, template):
    """Every output that a document's commands or sentences name is one of the stack's."""
    for path in sorted([root / "README.md", *root.glob("docs/*.md"), *root.glob("document/*.md")]):
        for name in re.findall(r"\$\(stack (\w+)\)|output `(\w+)`", path.read_text()):
            name = "".join(name)
            finder.expect(name in template["Outputs"], f"{path.relative_to(root)} names the output {name}, which the stack has not")


def expect_default(finder, path, name, parameter, default):
    """A table's default is the parameter's; none in the table is an empty one in the template."""
    own = parameter.get("Default")
    finder.expect(str(own) == default if default is not None else own in (None, ""), f"default of {name}: {path} {default!r}, template {own!r}")


def check_parameters(finder, parameters):
    """Every parameter says its effect, and takes and refuses what it should at the edges; so that nobody is asked, each has a default."""
    session = botocore.session.get_session()
    for name, parameter in parameters.items():
        description = parameter.get("Description", "").strip()
        finder.expect(description.endswith("."), f"the description of {name} is no sentence: {description!r}")
        finder.expect(len(description) <= MAX_PARAMETER_DESCRIPTION, f"the description of {name} is too long")
        finder.expect("Default" in parameter, f"{name} has no default")
        finder.expect(parameter["Type"] in ("String", "Number", "CommaDelimitedList"), f"{name} is a {parameter['Type']}")
        limited = "AllowedPattern" in parameter or "AllowedValues" in parameter or {"MinValue", "MaxValue"} <= set(parameter)
        finder.expect(limited, f"{name} takes anything")
        if "AllowedPattern" not in parameter:
            finder.expect(parameter.get("Default") in parameter.get("AllowedValues", [parameter.get("Default")]), f"the default of {name} is not allowed")
            continue
        finder.expect(parameter.get("ConstraintDescription"), f"{name} has a pattern, and nothing that says it in words")
        if not finder.expect(name in EDGES, f"{name} has a pattern, and no values at its edges here"):
            continue
        pattern = re.compile(parameter["AllowedPattern"])
        taken, refused = EDGES[name]
        for value in [*taken, parameter.get("Default", "")]:
            finder.expect(pattern.fullmatch(value), f"{name} refuses {value!r}")
        for value in refused:
            finder.expect(not pattern.fullmatch(value), f"{name} takes {value!r}")
        if name in SERVICE_SHAPES:
            service, shape = SERVICE_SHAPES[name]
            limits = session.get_service_model(service).shape_for(shape).metadata
            for value in filter(None, taken):
                fits = limits["min"] <= len(value) <= limits["max"] and re.fullmatch(limits.get("pattern", ".*"), value)
                finder.expect(fits, f"{name} takes {value!r}, which {service} refuses")


def check_console(finder, template):
    """Every parameter stands in exactly one group of the console."""
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    grouped = [name for group in groups for name in group["Parameters"]]
    for name in template["Parameters"]:
        finder.expect(grouped.count(name) == 1, f"{name} stands in {grouped.count(name)} groups of the console")
    unknown = set(grouped) - set(template["Parameters"])
    finder.expect(not unknown, f"the console's groups hold {sorted(unknown)}, which are no parameters")
    for group in groups:
        finder.expect(group["Label"].get("default"), f"a group of the console has no label: {group['Parameters']}")


def check_publication(finder, root, template):
    """The metadata of the Serverless Application Repository is complete, within that service's limits, and true."""
    published = template["Metadata"]["AWS::ServerlessRepo::Application"]
    finder.expect(list(published) == PUBLISHED, f"the published metadata are {list(published)}, they should be {PUBLISHED}")
    finder.expect(len(template["Description"].encode()) <= MAX_DESCRIPTION, "the template's description is too long")
    package = cargo_package(root)
    finder.expect(published.get("SemanticVersion") == package["version"], f"published as {published.get('SemanticVersion')}, Cargo.toml says {package['version']}")
    finder.expect(published.get("SpdxLicenseId") == package["license"], f"published under {published.get('SpdxLicenseId')}, Cargo.toml says {package['license']}")
    finder.expect(published.get("Name") == package["name"], f"published as {published.get('Name')}, Cargo.toml says {package['name']}")
    for key in ("LicenseUrl", "ReadmeUrl"):
        finder.expect((root / published.get(key, "missing")).is_file(), f"{key} is {published.get(key)!r}, which is no file here")
    told = re.findall(r"download v(\S+)|-(\d[\d.]*)-(?:arm64|x86_64)\.zip", (root / "docs/deploy.md").read_text())
    finder.expect({"".join(each) for each in told} == {package["version"]}, f"docs/deploy.md has commands for the releases {told}, Cargo.toml says {package['version']}")
    members = botocore.session.get_session().get_service_model("serverlessrepo").operation_model("CreateApplication").input_shape.members
    for key in ("Name", "Description", "Author", "Labels"):
        for value in published.get(key, []) if key == "Labels" else [published.get(key, "")]:
            check_limits(finder, key, value, members[key].documentation)
    finder.expect(len(published.get("Labels", [])) <= 10, "more than 10 labels")


def cargo_package(root):
    """The `[package]` of Cargo.toml, with what it takes from the workspace."""
    manifest = tomllib.loads((root / "Cargo.toml").read_text())
    shared = manifest["workspace"]["package"]
    return {key: shared[key] if value == {"workspace": True} else value for key, value in manifest["package"].items()}


def check_limits(finder, key, value, documentation):
    """The service's model has its limits only in words: "Minimum length=1. Maximum length=127. Pattern "…"; "."""
    lowest, greatest = (int(re.search(rf"{word} length=(\d+)", documentation)[1]) for word in ("Minimum", "Maximum"))
    finder.expect(lowest <= len(value) <= greatest, f"{key} {value!r} has not {lowest} to {greatest} characters")
    for pattern in re.findall(r'Pattern:? "(.+)";', documentation):
        pattern = pattern.replace("\\\\", "\\")
        finder.expect(re.fullmatch(pattern, value), f"the Serverless Application Repository refuses {key} {value!r}; it takes {pattern}")
