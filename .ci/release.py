#!/usr/bin/env python3
"""Makes what a release holds, in a folder: all of it out of template.yaml, document/ and the function as it was built.

    python3 .ci/release.py FOLDER [arm64=BINARY] [x86_64=BINARY]

restarter.yaml   the stack for whoever does not build: template.yaml with the code from a bucket, and nothing local in it
documents.yaml   the two restart documents alone, under names that are given, for other regions
…-PROCESSOR.zip  the function, for each processor whose binary is given
SHA256SUMS       of everything in the folder, so also of what somebody else has put there

Needs nothing but Python; builds nothing, and makes the same bytes of the same input.
"""

import hashlib
import pathlib
import re
import sys
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "document"))

import build

NAME = "codedeploy-agent-restarter"
# The processor's number in an ELF file's header (e_machine), which is what a binary is really for.
MACHINES = {"arm64": 0xB7, "x86_64": 0x3E}
# What a console, a quick-create link, a StackSet, Terraform or the CDK takes of a template, in bytes: 1 MB from S3.
# https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
MAX_TEMPLATE = 1_000_000

CODE_PARAMETERS = """\
  # Where the function's code is.
  CodeBucket:
    Type: String
    AllowedPattern: ^$|^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$
    ConstraintDescription: the name of an S3 bucket
    Description: The S3 bucket that holds the function's zip. It must be in the stack's own region.
  CodeKey:
    Type: String
    MaxLength: 1024
    Description: The zip's key in that bucket. Another version needs another key, since CloudFormation does not look into the bucket.

"""

CODE_RULES = """\
  CodeIsSomewhere:
    Assertions:
      - Assert: !And [!Not [!Equals [!Ref CodeBucket, ""]], !Not [!Equals [!Ref CodeKey, ""]]]
        AssertDescription: CodeBucket and CodeKey say where the function's zip is; upload it to a bucket of the stack's region first.
  ZipForArm64:
    RuleCondition: !Equals [!Ref CodeKey, %(arm64)s]
    Assertions:
      - Assert: !Equals [!Ref Architecture, arm64]
        AssertDescription: The zip in CodeKey is for Architecture "arm64", and would not start on another processor.
  ZipForX86:
    RuleCondition: !Equals [!Ref CodeKey, %(x86_64)s]
    Assertions:
      - Assert: !Equals [!Ref Architecture, x86_64]
        AssertDescription: The zip in CodeKey is for Architecture "x86_64", and would not start on another processor.
"""

DOCUMENTS = """\
# The restart documents of codedeploy-agent-restarter %(version)s, for a region in which the stack itself is not. Made by .ci/release.py.
AWSTemplateFormatVersion: "2010-09-09"
Description: The documents by which codedeploy-agent-restarter restarts CodeDeploy agents, for deployment groups in another region than its stack's.

Parameters:
%(parameters)s
Rules:
  TwoNames:
    Assertions:
      - Assert: !Not [!Equals [!Ref DocumentName, !Ref WindowsDocumentName]]
        AssertDescription: DocumentName and WindowsDocumentName are two documents; give each the name that it has in the stack's own region.

Resources:
%(resources)s"""

DOCUMENT_PARAMETER = """\
  %(name)s:
    Type: String
    AllowedPattern: ^[A-Za-z0-9_.-]{3,128}$
    ConstraintDescription: the stack's output %(name)s
    Description: The name of the document for %(platform)s, which is the output %(name)s of the stack.
"""


def version():
    """The version that Cargo.toml gives."""
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def zip_name(processor):
    """What the zip is called. It names the version, so that a new one is a new key in a bucket."""
    return f"{NAME}-{version()}-{processor}.zip"


def exchanged(text, *pairs):
    """The text with each old part, which stands there once, exchanged for the new one."""
    for pattern, new in pairs:
        text, times = re.subn(pattern, lambda _: new, text, flags=re.MULTILINE)
        if times != 1:
            raise ValueError(f"template.yaml has {times} places {pattern!r}, not one")
    return text


def restarter(template):
    """restarter.yaml, of the text of template.yaml."""
    return exchanged(
        template,
        (r"\A(#.*\n)+", f"# codedeploy-agent-restarter {version()}, with its code from a bucket. Made of template.yaml by .ci/release.py.\n"),
        # What only the SAM command line and its repository read; the latter names files.
        (r"^  AWS::ServerlessRepo::Application:\n(    .*\n)+", ""),
        (r"^      BuildMethod: .*\n      BuildProperties:\n        .*\n      # .*\n      cfn-lint: .*\n", ""),
        (r"^      Code: \.\n", "      Code: { S3Bucket: !Ref CodeBucket, S3Key: !Ref CodeKey }\n"),
        (r"^    ParameterGroups:\n", "    ParameterGroups:\n      - Label: { default: Where its code is }\n        Parameters: [CodeBucket, CodeKey]\n"),
        (r"^Parameters:\n", f"Parameters:\n{CODE_PARAMETERS}"),
        (r"^Rules:\n", "Rules:\n" + CODE_RULES % {processor: zip_name(processor) for processor in MACHINES}),
    )


def documents():
    """documents.yaml."""
    sources = build.scripts()
    # Each under the name that the stack's output has.
    names = {"RestartDocument": "DocumentName", "WindowsRestartDocument": "WindowsDocumentName"}
    return DOCUMENTS % {
        "version": version(),
        "parameters": "".join(DOCUMENT_PARAMETER % {"name": names[each.resource], "platform": each.platform} for each in build.DOCUMENTS),
        "resources": "\n".join(build.written(each, sources[each.script], f"      Name: !Ref {names[each.resource]}\n") for each in build.DOCUMENTS),
    }


def zipped(binary, processor, path):
    """Puts a binary into a zip as Lambda wants it: under its name, executable, whoever built it and when."""
    content = binary.read_bytes()
    if content[:4] != b"\x7fELF" or content[18:20] != MACHINES[processor].to_bytes(2, "little"):
        sys.exit(f"release: {binary} is no program for {processor}")
    entry = zipfile.ZipInfo("bootstrap", (1980, 1, 1, 0, 0, 0))
    entry.create_system, entry.external_attr, entry.compress_type = 3, 0o100755 << 16, zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, content)


def main():
    """Makes everything, and lists it."""
    folder, *binaries = sys.argv[1:] or sys.exit(__doc__)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "restarter.yaml").write_text(restarter(build.TEMPLATE.read_text()))
    (folder / "documents.yaml").write_text(documents())
    for processor, _, binary in (each.partition("=") for each in binaries):
        if processor not in MACHINES:
            sys.exit(__doc__)
        zipped(pathlib.Path(binary), processor, folder / zip_name(processor))
    made = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_text("".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made))
    for path in made:
        print(f"{path.stat().st_size:>10,} {path}")


if __name__ == "__main__":
    main()
