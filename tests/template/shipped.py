"""The templates that a release holds (.ci/release.py), against the one that they are made of: the same stack and the same documents, nothing local, no macro, within
CloudFormation's limits, and in every partition of AWS as its linter wants them."""

import re

import template

import build
import release

# One region of each partition, and one more of the usual one.
REGIONS = ["us-east-1", "eu-west-1", "cn-north-1", "us-gov-west-1"]
# Service-managed StackSets refuse a template with any of these, and so do we: what is deployed is what is read.
MACROS = r"Transform|Fn::Transform|AWS::CloudFormation::Macro|AWS::Serverless(Repo)?::(?!Application$).*"
CODE = {"S3Bucket": {"Ref": "CodeBucket"}, "S3Key": {"Ref": "CodeKey"}}


def made(text):
    """What a release makes of the text of template.yaml."""
    return {"restarter.yaml": release.restarter(text), "documents.yaml": release.documents()}


def check(finder, text):
    """All but the linter's part, about the text of template.yaml."""
    source, texts = template.read(text), made(text)
    for name, shipped in {"template.yaml": text, **texts}.items():
        for macro in sorted(set(macros(template.read(shipped)))):
            finder.expect(False, f"{name} has the macro {macro}, which service-managed StackSets refuse")
    for name, shipped in texts.items():
        size = len(shipped.encode())
        finder.expect(size <= release.MAX_TEMPLATE, f"{name} has {size} bytes, CloudFormation takes {release.MAX_TEMPLATE}")
    check_restarter(finder, source, template.read(texts["restarter.yaml"]))
    check_documents(finder, source, template.read(texts["documents.yaml"]))


def macros(node):
    """Every macro that a part of a template uses or makes."""
    if isinstance(node, list):
        return [found for part in node for found in macros(part)]
    if not isinstance(node, dict):
        return []
    here = [word for key, value in node.items() for word in (key, value) if isinstance(word, str) and re.fullmatch(MACROS, word)]
    return here + [found for value in node.values() for found in macros(value)]


def check_restarter(finder, source, shipped):
    """The stack is the template's, but for where its code comes from."""
    own = {"CodeBucket", "CodeKey"}
    finder.expect(set(shipped["Parameters"]) - set(source["Parameters"]) == own, f"restarter.yaml has not the template's parameters and {sorted(own)}")
    for name in sorted(own):
        finder.expect("Default" not in shipped["Parameters"][name], f"{name} has a default, which is nobody's bucket")
    for section in ("Conditions", "Outputs"):
        finder.expect(shipped[section] == source[section], f"the {section} of restarter.yaml are not the template's")
    for section in ("Parameters", "Rules"):
        kept = {name: shipped[section].get(name) for name in source[section]}
        finder.expect(kept == source[section], f"restarter.yaml leaves out some of the template's {section}")
    function = shipped["Resources"]["RestartFunction"]
    finder.expect(function["Properties"]["Code"] == CODE, f"the code of restarter.yaml is {function['Properties']['Code']}, not {CODE}")
    found, wanted = ({name: properties(each) for name, each in each["Resources"].items()} for each in (shipped, source))
    finder.expect(found == wanted, "the resources of restarter.yaml are not the template's")
    local = sorted({"BuildMethod", "BuildProperties"} & set(function["Metadata"]) | {"AWS::ServerlessRepo::Application"} & set(shipped["Metadata"]))
    finder.expect(not local, f"restarter.yaml holds {local}, which only mean something beside the source")


def properties(resource):
    """A resource without what restarter.yaml may change of it."""
    return {key: value for key, value in resource.items() if key != "Metadata"} | {"Properties": {**resource.get("Properties", {}), "Code": None}}


def check_documents(finder, source, shipped):
    """The documents are the template's, under the names of its outputs."""
    finder.expect(set(shipped["Resources"]) == {each.resource for each in build.DOCUMENTS}, f"documents.yaml has the resources {sorted(shipped['Resources'])}")
    for name, resource in shipped["Resources"].items():
        output = resource["Properties"].pop("Name").get("Ref")
        finder.expect(source["Outputs"].get(output, {}).get("Value") == {"Ref": name}, f"documents.yaml names {name} by {output}, which is not the stack's output of it")
        finder.expect(output in shipped["Parameters"], f"documents.yaml has no parameter {output}")
        finder.expect(resource == source["Resources"].get(name), f"{name} of documents.yaml is not the template's")


def lint(text):
    """What cfn-lint says about a template: also its warnings, which tell of references to what a condition may leave out."""
    from cfnlint import lint
    from cfnlint.config import ManualArgs

    found = lint(text, config=ManualArgs(regions=REGIONS))
    return [f"cfn-lint: {match.rule.id} {match.message} at {'/'.join(map(str, match.path or []))}" for match in found]
