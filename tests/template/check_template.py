#!/usr/bin/env python3
"""Holds template.yaml against the rest of the repository, and against what makes a stack of it work.

    tests/template/check_template.py [--template FILE]

Needs the Python packages that come with the SAM command line (PyYAML, botocore, cfn-lint), and Cargo, which runs the test that tells of the
function (facts.py). Makes no call to AWS. Prints every disagreement, one a line, and ends with 1 if there is any.
"""

import argparse
import pathlib
import sys

import agreement
import deployer
import shipped
import template
import upgrade
import wiring


def check_agreement(finder, source, _text):
    """Settings, outcomes, parameters, alarms, console and publication agree with the function, docs/, document/README.md and Cargo.toml."""
    agreement.check(finder, template.ROOT, source)


def check_function(finder, source, _text):
    """The limits that the function's own timing rests on."""
    properties = source["Resources"]["RestartFunction"]["Properties"]
    finder.expect(properties["Timeout"] == 900, "the function's timeout is not 900 s")
    finder.expect(properties["MemorySize"] == 256, "the function's memory is not 256 MB")
    finder.expect((properties["Runtime"], properties["Handler"]) == ("provided.al2023", "bootstrap"), "runtime or handler is another one")
    finder.expect(source["Parameters"]["Architecture"]["Default"] == "arm64", "the default architecture is not arm64")


def check_wiring(finder, source, _text):
    """In every stack that the template can become, callers may call, what fails is kept, alarms are about real metrics, and each property was decided about."""
    wiring.check(finder, source)


def check_upgrade(finder, source, _text):
    """A stack of the first edition keeps its queue, logs, topic and key when it is updated."""
    upgrade.check(finder, source)


def check_shipped(finder, _source, text):
    """What a release holds is the same stack and the same documents, without a macro, and cfn-lint finds nothing in it, in any partition."""
    shipped.check(finder, text)
    for name, made in shipped.made(text).items():
        for problem in shipped.lint(made):
            finder.expect(False, f"{name}: {problem}")


def check_deployer(finder, source, _text):
    """The policy for whoever deploys allows what CloudFormation calls for these resources, and nothing beside it."""
    deployer.check(finder, template.ROOT, source)


CHECKS = (check_function, check_agreement, check_wiring, check_upgrade, check_shipped, check_deployer)


def main():
    """Runs every check, and shows all problems at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=pathlib.Path, default=template.TEMPLATE)
    text = parser.parse_args().template.read_text()
    source = template.read(text)
    problems = []
    for check in CHECKS:
        finder = template.Finder()
        check(finder, source, text)
        print(f"{check.__name__}: {'ok' if not finder.problems else 'PROBLEMS'} - {check.__doc__}")
        problems += finder.problems
    for problem in problems:
        print(f"template: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
