#!/usr/bin/env python3
"""Writes the two documents, with the scripts of this folder verbatim, to the end of template.yaml.

    python3 document/build.py

There is no other way for them to get there: tests/template/check_document.py fails when the end of template.yaml is anything else. .ci/release.py makes
documents.yaml of the same text, for other regions.
"""

import pathlib
import sys
import typing

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "template.yaml"
# What stands above this line is written by hand.
MARK = "  # ---- what runs on the instances: document/build.py writes everything below this line " + "-" * 76 + "\n"


class Document(typing.NamedTuple):
    """A document: its resource, its platform, its only step with its action, its script, and the line that hands a parameter over to that."""

    resource: str
    platform: str
    step: str
    action: str
    script: str
    handover: str


DOCUMENTS = (
    Document("RestartDocument", "Linux", "linux", "aws:runShellScript", "document/restart-agent.sh", "%s='{{ %s }}'"),
    Document("WindowsRestartDocument", "Windows", "windows", "aws:runPowerShellScript", "document/restart-agent.ps1", "$%s = '{{ %s }}'"),
)

# Values are put into the scripts as they are, so they are digits and nothing else. Each parameter with its default, where it has one: both moments belong together.
PARAMETERS = (
    (
        "triggeredAt",
        None,
        "When the deployment ended, in seconds since 1970, by the clock that sentAt is from. An agent that started later is left alone. 0, with 0 for sentAt, restarts every agent.",
    ),
    ("sentAt", None, "When this command was sent, in seconds since 1970, by the same clock. The host's own clock is not used."),
    ("busyWaitSeconds", 120, "How long to wait (seconds) for a deployment step, an installation or another restart on the host, before the agent is reported as busy and left alone."),
    ("minMemoryMiB", 0, "A healthy agent that holds less memory than this (MiB) is left alone. 0 restarts every agent."),
    (
        "executionTimeoutSeconds",
        570,
        "When Systems Manager kills the script (seconds). The script ends by itself at busyWaitSeconds + 390 at the latest, so this has to be more; the function gives busyWaitSeconds + 450.",
    ),
)
# Systems Manager itself uses the last one; the others, each with the scripts' names for it.
HANDED_OVER = (
    ("triggeredAt", "TRIGGERED_AT", "TriggeredAt"),
    ("sentAt", "SENT_AT", "SentAt"),
    ("busyWaitSeconds", "BUSY_WAIT_SECONDS", "BusyWaitSeconds"),
    ("minMemoryMiB", "MIN_MEMORY_MIB", "MinMemoryMiB"),
)

INTRODUCTION = """\

  # A document for each platform, of one step, so that the SSM Agent's last reply holds both its end and its output. document/README.md tells the contract. The
  # stack's have no fixed names, because CloudFormation could not replace them then; the function gets their names by reference, and asks for the newest version,
  # because an update is not known to move the default one. The preconditions are for macOS, where a shell script runs as well.
"""

PARAMETER = """\
          %(name)s:
            type: String
            description: %(description)s
            allowedPattern: ^(0|[1-9][0-9]{0,9})$
"""

RESOURCE = """\
  %(resource)s:
    Type: AWS::SSM::Document
    Properties:
      DocumentType: Command
      UpdateMethod: NewVersion
%(properties)s\
      Content:
        schemaVersion: "2.2"
        description: Restarts the CodeDeploy agent on %(platform)s when that hurts nothing, and proves on the host that a new, working agent runs. Prints one line of JSON.
        parameters:
%(parameters)s\
        mainSteps:
          - action: %(action)s
            name: %(step)s
            precondition:
              StringEquals: [platformType, %(platform)s]
            inputs:
              timeoutSeconds: "{{ executionTimeoutSeconds }}"
              runCommand:
                - |
%(handovers)s\
                # %(script)s, verbatim.
                - |
%(text)s"""


def scripts():
    """The scripts, by their paths in the repository."""
    return {document.script: (ROOT / document.script).read_bytes() for document in DOCUMENTS}


def written(document, source, properties=""):
    """A document as a resource in YAML; the properties are those that it has besides, each a line."""
    parameters = []
    for name, default, description in PARAMETERS:
        text = PARAMETER % {"name": name, "description": description}
        parameters.append(text if default is None else f'{text}            default: "{default}"\n')
    variables = [(windows if document.platform == "Windows" else linux, parameter) for parameter, linux, windows in HANDED_OVER]
    return RESOURCE % {
        **document._asdict(),
        "properties": properties,
        "parameters": "".join(parameters),
        "handovers": indented("".join(f"{document.handover % pair}\n" for pair in variables)),
        "text": indented(source.decode()),
    }


def indented(text):
    """The text as the lines of a block of `runCommand`."""
    return "".join(f"{' ' * 18}{line}\n" if line else "\n" for line in text.splitlines())


def built(template, sources):
    """The text of a template with the documents at its end."""
    if template.count(MARK) != 1:
        sys.exit(f"the template has {template.count(MARK)} lines `{MARK.strip()}`, not one")
    return template.partition(MARK)[0] + MARK + INTRODUCTION + "".join("\n" + written(document, sources[document.script]) for document in DOCUMENTS)


def main():
    """Writes them."""
    before = TEMPLATE.read_text()
    after = built(before, scripts())
    if after != before:
        TEMPLATE.write_text(after)
    print(f"template.yaml: the documents are {'as they were' if after == before else 'written'}, {len(after.encode())} bytes")


if __name__ == "__main__":
    main()
