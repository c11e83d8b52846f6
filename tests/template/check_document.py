#!/usr/bin/env python3
"""Holds the Run Command documents in template.yaml against the scripts in document/, and against what Systems Manager takes.

    tests/template/check_document.py                 # the check
    tests/template/check_document.py --planted       # the check, and then mistakes in the documents, each of which has to be found

document/build.py puts the scripts into the template; what is right is written down here once more. Needs PyYAML, botocore, whose model of CreateDocument it uses,
and Cargo, which runs the test that tells of the function (facts.py); the first two come with the SAM command line. Makes no call to AWS. Prints every disagreement,
one a line, and ends with 1 if there is any.
"""

import copy
import json
import re
import sys

import facts
from template import TEMPLATE, read

import build

# Each document: its only step, that one's action, the platform of its precondition, its script, and the form of a line that hands a parameter over to it.
DOCUMENTS = {
    "RestartDocument": ("linux", "aws:runShellScript", "Linux", "document/restart-agent.sh", r"([A-Z_]+)='\{\{ (\w+) \}\}'"),
    "WindowsRestartDocument": ("windows", "aws:runPowerShellScript", "Windows", "document/restart-agent.ps1", r"\$([A-Za-z]+) = '\{\{ (\w+) \}\}'"),
}
# The parameters, each with its default where it has one. Both moments belong together, so neither has one: half of them would call every agent fresh.
PARAMETERS = {"triggeredAt": None, "sentAt": None, "busyWaitSeconds": "120", "minMemoryMiB": "0", "executionTimeoutSeconds": "570"}
# Systems Manager itself uses this one; the script need not know it.
NOT_HANDED_OVER = {"executionTimeoutSeconds"}
# What every parameter has to take, and to refuse: values are put into the scripts as they are. A leading zero would make an octal number of it in a shell.
TAKEN = ["0", "7", "120", "1763769600", "9999999999"]
REFUSED = ["", "00", "0120", "-1", "1.5", "1 ", " 1", "1\n", "1;reboot", "'1", "$(reboot)", "12345678901", "{{ sentAt }}", "x1", "1x"]
# Bytes of a document (Systems Manager, quotas). Characters of its name, and of a step's name (CreateDocument, schema 2.2).
MAX_DOCUMENT = 65_536
NAME = re.compile(r"[a-zA-Z0-9_.-]{3,128}")

KNOWN_DOCUMENT_KEYS = {"schemaVersion", "description", "parameters", "mainSteps"}
KNOWN_STEP_KEYS = {"action", "name", "precondition", "inputs"}
KNOWN_INPUT_KEYS = {"timeoutSeconds", "runCommand"}
KNOWN_PARAMETER_KEYS = {"type", "description", "default", "allowedPattern"}
KNOWN_RESOURCE_KEYS = {"DocumentType", "UpdateMethod", "Content", "Tags"}


class Finder:
    """Collects problems, so that all of them are told at once."""

    def __init__(self):
        self.problems = []

    def expect(self, holds, problem):
        """Notes the problem unless the condition holds."""
        if not holds:
            self.problems.append(problem)
        return bool(holds)

    def expect_keys(self, what, found, known):
        """Notes keys that are not known, or that is no mapping at all."""
        if self.expect(isinstance(found, dict), f"{what} is no mapping"):
            self.expect(set(found) <= known, f"{what} has unknown keys {sorted(set(found) - known)}")
            return True
        return False


def check_scripts(finder, sources):
    """The scripts can stand in a document at all."""
    for path, source in sources.items():
        finder.expect(b"{{" not in source, f"{path} holds '{{{{', which Systems Manager takes for a parameter")
        finder.expect(source.isascii(), f"{path} is not plain ASCII: hosts would read it in different encodings")
        finder.expect(b"\r" not in source and b"\t" not in source, f"{path} holds carriage returns or tabs")
        finder.expect(source.endswith(b"\n") and not source.endswith(b"\n\n"), f"{path} does not end with one line feed")
        trailing = [number for number, line in enumerate(source.split(b"\n"), 1) if line.endswith(b" ")]
        finder.expect(not trailing, f"{path} has spaces at the end of lines {trailing}")
    text = sources["document/restart-agent.sh"].decode(errors="replace")
    finder.expect(not re.search(r"\bexit 194\b", text), "restart-agent.sh ends with 194, at which Systems Manager reboots the host")
    text = sources["document/restart-agent.ps1"].decode(errors="replace")
    finder.expect("3010" not in text, "restart-agent.ps1 names 3010, at which Systems Manager reboots the host")


def check_resource(finder, resource):
    """The resource is a Run Command document that updates in place and has no fixed name."""
    finder.expect(resource.get("Type") == "AWS::SSM::Document", "it is no AWS::SSM::Document")
    properties = resource.get("Properties", {})
    finder.expect("Name" not in properties, "it has a fixed name: CloudFormation could not replace it")
    finder.expect_keys("it", properties, KNOWN_RESOURCE_KEYS | {"Name"})
    finder.expect(properties.get("DocumentType") == "Command", "it is no Command document")
    finder.expect(properties.get("UpdateMethod") == "NewVersion", "it is replaced by an update, instead of getting a new version")


def check_parameters(finder, parameters):
    """Exactly the contract's parameters, each of which takes digits and nothing else."""
    finder.expect(list(parameters) == list(PARAMETERS), f"the parameters are {list(parameters)}, the contract has {list(PARAMETERS)}")
    for name, parameter in parameters.items():
        if not finder.expect_keys(f"parameter {name}", parameter, KNOWN_PARAMETER_KEYS):
            continue
        finder.expect(parameter.get("type") == "String", f"parameter {name} is no String")
        finder.expect(parameter.get("description"), f"parameter {name} has no description")
        pattern = parameter.get("allowedPattern", "")
        finder.expect(pattern.startswith("^") and pattern.endswith("$"), f"the pattern of {name} is not anchored: {pattern!r}")
        # The end of Systems Manager's own expressions is the end of the text; Python's `$` also stands before a last line feed.
        compiled = re.compile(re.sub(r"\$$", r"\\Z", pattern))
        for value in TAKEN:
            finder.expect(compiled.search(value), f"parameter {name} refuses {value!r}")
        for value in REFUSED:
            finder.expect(not compiled.search(value), f"parameter {name} takes {value!r}")
        default = parameter.get("default")
        finder.expect(default == PARAMETERS.get(name), f"the default of {name} is {default!r}, the contract has {PARAMETERS.get(name)!r}")
        finder.expect(default is None or compiled.search(str(default)), f"the default of {name} does not fit its own pattern")


def check_contract(finder):
    """The function sends these parameters, and the simulated Systems Manager takes them with these defaults."""
    told = facts.read()
    sent = {parameter["name"]: parameter["simDefault"] for parameter in told["parameters"]}
    finder.expect(set(sent) == set(PARAMETERS), f"the function sends {list(sent)}, the documents have {list(PARAMETERS)}")
    simulated = told["simulatedParameters"]
    finder.expect(set(simulated) == set(PARAMETERS), f"the simulated Systems Manager takes {simulated}, the documents have {list(PARAMETERS)}")
    for name in set(sent) & set(PARAMETERS):
        finder.expect(sent[name] == PARAMETERS[name], f"the default of {name} is {sent[name]!r} in the simulated Systems Manager, the contract has {PARAMETERS[name]!r}")


def check_step(finder, step, document, sources):
    """A document's step: the right action under the right precondition, a prelude that hands the parameters over, then the script."""
    name, action, platform, path, form = DOCUMENTS[document]
    finder.expect_keys(f"step {name}", step, KNOWN_STEP_KEYS)
    finder.expect(step.get("name") == name and NAME.fullmatch(name), f"its step is {step.get('name')!r}, not {name!r}")
    finder.expect(step.get("action") == action, f"step {name} has the action {step.get('action')!r}, not {action!r}")
    finder.expect(
        step.get("precondition") == {"StringEquals": ["platformType", platform]},
        f"step {name} has not the precondition of {platform}: {step.get('precondition')!r}",
    )
    inputs = step.get("inputs")
    if not finder.expect_keys(f"the inputs of step {name}", inputs, KNOWN_INPUT_KEYS):
        return
    finder.expect(
        inputs.get("timeoutSeconds") == "{{ executionTimeoutSeconds }}",
        f"the timeoutSeconds of step {name} is not the text of its parameter: {inputs.get('timeoutSeconds')!r}",
    )
    commands = inputs.get("runCommand")
    well_formed = isinstance(commands, list) and len(commands) == 2 and all(isinstance(command, str) for command in commands)
    if not finder.expect(well_formed, f"the runCommand of step {name} is not a prelude and a script"):
        return
    prelude, script = commands
    handed = re.findall(form, prelude)
    finder.expect(re.fullmatch(rf"(?:#[^\n{{]*\n|{form}\n?)+", prelude), f"the prelude of step {name} does more than to hand parameters over")
    wanted = set(PARAMETERS) - NOT_HANDED_OVER
    finder.expect({parameter for _, parameter in handed} == wanted, f"the prelude of step {name} does not hand over {sorted(wanted)}, each once")
    finder.expect(len(handed) == len(wanted), f"the prelude of step {name} hands something over twice")
    for variable, parameter in handed:
        finder.expect(variable.replace("_", "").lower() == parameter.lower(), f"step {name} hands {parameter} over as {variable}")
        finder.expect(re.search(rf"\b{variable}\b", script), f"the script of step {name} does not know {variable}")
    if script.encode() != sources[path]:
        theirs, ours = script.splitlines(), sources[path].decode(errors="replace").splitlines()
        line = next((n for n, (a, b) in enumerate(zip(theirs, ours), 1) if a != b), min(len(theirs), len(ours)) + 1)
        finder.expect(False, f"step {name} differs from {path} from its line {line} on; `python3 document/build.py` puts it there again")


def check_content(finder, content, document, sources):
    """The document as a whole: its schema, its parameters and its step."""
    if not finder.expect_keys("the document", content, KNOWN_DOCUMENT_KEYS):
        return
    finder.expect(content.get("schemaVersion") == "2.2", f"the schema is {content.get('schemaVersion')!r}, not the text 2.2")
    finder.expect(content.get("description"), "the document has no description")
    check_parameters(finder, content.get("parameters", {}))
    steps = content.get("mainSteps", [])
    # With one step, the SSM Agent's last reply holds the end and the output together.
    finder.expect(len(steps) == 1, f"it has {len(steps)} steps, not one")
    for step in steps:
        check_step(finder, step, document, sources)


def as_json(content):
    """The document as CloudFormation hands it to Systems Manager."""
    return json.dumps(content)


def check_limits(finder, content):
    """The JSON form is one that CreateDocument takes, and not too large."""
    import botocore.session
    import botocore.validate

    text = as_json(content)
    finder.expect(len(text.encode()) <= MAX_DOCUMENT, f"the document has {len(text.encode())} bytes, Systems Manager takes {MAX_DOCUMENT}")
    request = {"Name": "restart-agent", "Content": text, "DocumentType": "Command", "DocumentFormat": "JSON"}
    shape = botocore.session.get_session().get_service_model("ssm").operation_model("CreateDocument").input_shape
    report = botocore.validate.ParamValidator().validate(request, shape)
    finder.expect(not report.has_errors(), f"CreateDocument would refuse it: {report.generate_report()}")
    for name in ("DocumentType", "DocumentFormat"):
        finder.expect(request[name] in shape.members[name].enum, f"CreateDocument knows no {name} {request[name]}")
    finder.expect(re.fullmatch(shape.members["Name"].metadata["pattern"], request["Name"]), "CreateDocument refuses the name")


def all_problems(text, sources, resources=None):
    """Everything that is wrong with the documents in the text of a template, or with these of its resources, and with the scripts."""
    resources = resources or read(text)["Resources"]
    finder = Finder()
    finder.expect(build.built(text, sources) == text, "the end of template.yaml is not what document/build.py writes there: run it")
    check_contract(finder)
    check_scripts(finder, sources)
    found = {name for name, resource in resources.items() if resource.get("Type") == "AWS::SSM::Document"}
    finder.expect(found == set(DOCUMENTS), f"the template's documents are {sorted(found)}, not {sorted(DOCUMENTS)}")
    for name in DOCUMENTS:
        own = Finder()
        check_resource(own, resources.get(name, {}))
        content = resources.get(name, {}).get("Properties", {}).get("Content")
        check_content(own, content, name, sources)
        check_limits(own, content)
        finder.problems += [f"{name}: {problem}" for problem in own.problems]
    return finder.problems


def planted(resources, sources):
    """Mistakes, each with a word that its problem has to hold, and the resources and scripts with that mistake."""
    linux, windows = DOCUMENTS
    shell, power = (path for _, _, _, path, _ in DOCUMENTS.values())

    def with_document(change, document=linux):
        changed = copy.deepcopy(resources)
        change(changed[document]["Properties"])
        return changed, sources

    def with_content(change, document=linux):
        return with_document(lambda properties: change(properties["Content"]), document)

    def with_step(change, document=linux):
        return with_content(lambda content: change(content["mainSteps"][0]), document)

    def with_parameter(name, document=linux, **change):
        return with_content(lambda content: content["parameters"][name].update(change), document)

    def with_prelude(document, *edits):
        def edit(step):
            commands = step["inputs"]["runCommand"]
            for old, new in edits:
                assert old in commands[0]
                commands[0] = commands[0].replace(old, new)

        return with_step(edit, document)

    def with_script(document, change):
        """The script is changed in both places, so that the difference is not what is found."""
        changed, new, path = copy.deepcopy(resources), dict(sources), DOCUMENTS[document][3]
        new[path] = change(sources[path])
        changed[document]["Properties"]["Content"]["mainSteps"][0]["inputs"]["runCommand"][1] = new[path].decode()
        return changed, new

    def without(document):
        return {name: resource for name, resource in resources.items() if name != document}, sources

    def both_steps(content):
        content["mainSteps"] += resources[windows]["Properties"]["Content"]["mainSteps"]

    return [
        ("a changed script", "differs from", (resources, {**sources, shell: sources[shell].replace(b"set -u", b"set -ue", 1)})),
        ("a longer script", "differs from", (resources, {**sources, power: sources[power] + b"exit 0\n"})),
        ("a parameter in the shell script", "'{{'", with_script(linux, lambda text: text + b"# {{ sentAt }}\n")),
        ("a parameter in the PowerShell script", "'{{'", with_script(windows, lambda text: text + b"# {{sentAt}}\n")),
        ("a letter outside ASCII", "ASCII", with_script(linux, lambda text: text + "# é\n".encode())),
        ("the reboot code of Linux", "reboots", with_script(linux, lambda text: text + b"exit 194\n")),
        ("the reboot code of Windows", "reboots", with_script(windows, lambda text: text + b"exit 3010\n")),
        ("too much text", "RestartDocument: the document has", with_script(linux, lambda text: text + b"# padding\n" * 4000)),
        ("too much text for Windows", "WindowsRestartDocument: the document has", with_script(windows, lambda text: text + b"# padding\n" * 4000)),
        ("no document for Windows", "the template's documents are", without(windows)),
        ("a fixed name", "fixed name", with_document(lambda properties: properties.update(Name="restart-agent"))),
        ("a fixed name for Windows", "fixed name", with_document(lambda properties: properties.update(Name="restart-agent"), windows)),
        ("an automation", "no Command", with_document(lambda properties: properties.update(DocumentType="Automation"))),
        ("replacement at an update", "replaced", with_document(lambda properties: properties.update(UpdateMethod="Replace"), windows)),
        ("another schema", "schema", with_content(lambda content: content.update(schemaVersion=2.2))),
        ("an unknown key", "unknown keys", with_content(lambda content: content.update(files={}))),
        ("no precondition", "precondition", with_step(lambda step: step.pop("precondition"))),
        ("the other precondition", "precondition", with_step(lambda step: step.update(precondition={"StringEquals": ["platformType", "Linux"]}), windows)),
        ("the other action", "action", with_step(lambda step: step.update(action="aws:runShellScript"), windows)),
        ("another step", "its step is", with_step(lambda step: step.update(name="restart"))),
        ("an unknown key of a step", "unknown keys", with_step(lambda step: step.update(onFailure="Abort"))),
        ("an unknown input", "unknown keys", with_step(lambda step: step["inputs"].update(workingdirectory="/"))),
        ("a time-out as a number", "timeoutSeconds", with_step(lambda step: step["inputs"].update(timeoutSeconds=570))),
        ("no time-out", "timeoutSeconds", with_step(lambda step: step["inputs"].pop("timeoutSeconds"), windows)),
        ("a single command", "runCommand", with_step(lambda step: step["inputs"].update(runCommand="id"))),
        ("both steps in one document", "2 steps", with_content(both_steps)),
        ("a pattern with an open end", "not anchored", with_parameter("sentAt", allowedPattern="^[0-9]{1,10}")),
        ("a pattern with an open branch", "takes", with_parameter("sentAt", windows, allowedPattern="^0|[1-9][0-9]{0,9}$")),
        ("a pattern that takes nothing", "refuses", with_parameter("sentAt", allowedPattern="^x$")),
        ("octal numbers", "takes '0120'", with_parameter("sentAt", allowedPattern="^[0-9]{1,10}$")),
        ("a default for one moment", "default of sentAt", with_parameter("sentAt", default="0")),
        ("a number as default", "default of minMemoryMiB", with_parameter("minMemoryMiB", windows, default=0)),
        ("a missing parameter", "the parameters are", with_content(lambda content: content["parameters"].pop("minMemoryMiB"))),
        ("a parameter under a wrong name", "hand", with_prelude(linux, ("{{ sentAt }}", "{{ triggeredAt }}"))),
        ("swapped parameters", "hands sentAt over as", with_prelude(windows, ("$SentAt", "$X"), ("$TriggeredAt", "$SentAt"), ("$X", "$TriggeredAt"))),
        ("a command in the prelude", "does more", with_prelude(linux, ("SENT_AT=", "set -x\nSENT_AT="))),
        ("a variable that the script does not know", "does not know", with_script(linux, lambda text: text.replace(b"MIN_MEMORY_MIB", b"MEMORY"))),
    ]


def prove_that_it_can_fail(text, sources):
    """Plants every mistake, and gives those that are not found as what they are."""
    missed = []
    mistakes = planted(read(text)["Resources"], sources)
    for name, word, (changed, new) in mistakes:
        found = all_problems(text, new, changed)
        if not any(word in problem for problem in found):
            missed.append(f"planted and not found as {word!r}: {name}; found {found}")
    print(f"document: {len(mistakes) - len(missed)} of {len(mistakes)} planted mistakes found")
    return missed


def main():
    """Checks the documents and, if asked to, that the check can fail."""
    wishes = sys.argv[1:]
    if wishes not in ([], ["--planted"]):
        sys.exit(__doc__)
    text, sources = TEMPLATE.read_text(), build.scripts()
    problems = all_problems(text, sources)
    if not problems:
        resources = read(text)["Resources"]
        sizes = {name: len(as_json(resources[name]["Properties"]["Content"]).encode()) for name in DOCUMENTS}
        print(f"document: ok, {sizes} of {MAX_DOCUMENT} bytes each")
        # Planted into documents with mistakes of their own, a mistake could be taken for one of those.
        if wishes == ["--planted"]:
            problems = prove_that_it_can_fail(text, sources)
    for problem in problems:
        print(f"document: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
