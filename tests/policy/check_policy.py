#!/usr/bin/env python3
"""Proves that template.yaml grants what is needed and nothing beside it.

    check_policy.py DIR

DIR holds the transcripts of the stories (SIM_TRANSCRIPT_DIR=DIR cargo test --test stories). An IAM simulator that honours Resource and Condition is asked, for
several sets of the template's parameters, about each call that the stories made, about what AWS services do in the roles' names and in their own, and about the
neighbours of each: the same request with one field changed. The first must be allowed, the neighbours refused; and without anything that a policy names, one of
the first must be refused. README.md says how to read what is printed.
Exit status: 0 when that holds, 1 with any problem, 2 when called wrongly.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import calls
import cases
import granted
import losses
from granted import as_list

HERE = pathlib.Path(__file__).resolve().parent
# Seconds for all questions of one run; they take a few.
SIMULATOR_LIMIT = 300
REFUSALS = {"ImplicitlyDenied", "ExplicitlyDenied"}
# What a principal of another account may do as far as its own account is concerned, so that only our policies can refuse it.
EVERYTHING = {"Version": "2012-10-17", "Statement": [{"Sid": "Everything", "Effect": "Allow", "Action": "*", "Resource": "*"}]}


@dataclass(frozen=True)
class Part:
    """Something that a policy names: whose policy, in which statement, and what."""

    subject: str
    statement: str
    name: str


@dataclass(frozen=True)
class Need:
    """A part that some request should need: what the stack grants without it, and the requests that may depend on it, each with its subject."""

    part: Part
    grants: granted.Grants
    requests: tuple[tuple[cases.Request, str], ...]


@dataclass
class StackCheck:
    """One stack, what it grants, and what was found."""

    stack: cases.Stack
    grants: granted.Grants | None = None
    cases: list = field(default_factory=list)
    needs: list = field(default_factory=list)
    problems: list = field(default_factory=list)

    def expect(self, holds, problem):
        """Notes the problem unless the condition holds."""
        if not holds:
            self.problems.append(f"stack with {self.stack.name}: {problem}")


def prepare(source, stack, stories, needed=frozenset()):
    """What the stack grants and has to, before the simulator is asked. It will not be asked about the parts that are needed in any case."""
    check = StackCheck(stack)
    try:
        check.grants = granted.grants(source, stack.parameters)
    except granted.Unresolved as error:
        check.expect(False, str(error))
        return check
    check.cases = cases.cases(stack, stories.shapes())
    check.needs = [need for need in needs_of(check) if need.part not in needed]
    check_form(check)
    check_actions(check, stories)
    return check


def check_form(check):
    """Each statement says its purpose, and names actions and resources rather than what they are not."""
    for role, policy in check.grants.roles.items():
        purposes = Counter(statement.get("Sid") for statement in policy["Statement"])
        for purpose, times in purposes.items():
            check.expect(purpose and times == 1, f"{role} has {times} statements with the Sid {purpose}: give each purpose one, and a name")
        for statement in policy["Statement"]:
            check.expect("Action" in statement, f"{role}, {statement.get('Sid')}: name its actions instead of what they are not")
            named = "Resource" in statement or statement["Effect"] == "Deny"
            check.expect(named, f"{role}, {statement.get('Sid')}: name its resources instead of what they are not")


def check_actions(check, stories):
    """Each role allows the actions of the stories and of the services that act in its name, and no other."""
    needed = defaultdict(set)
    for case in check.cases:
        if case.requests:
            needed[case.subject].add(case.action)
    unknown = sorted(set(stories.groupless) - {call.action for call in stories.calls})
    check.expect(not unknown, f"the stories call {unknown} only for deployments of which no answer tells the group: tell one that does")
    for role, policy in check.grants.roles.items():
        allowed = {name for statement in policy["Statement"] if statement["Effect"] == "Allow" for name in as_list(statement.get("Action", []))}
        for name in sorted(allowed - needed[role]):
            check.expect(False, f"{role} allows {name}, which no story calls and no service needs: take it out of template.yaml, or tell the story")
        for name in sorted(needed[role] - allowed):
            who = "a story calls" if name in stories.actions() else "a service needs"
            check.expect(False, f"{role} lacks {name}, which {who}: add it in template.yaml")


def needs_of(check):
    """Whatever the policies of a stack can lose, each with the requests that may depend on it."""
    allowed = [(request, case.subject) for case in check.cases for request in case.requests]
    for subject, policy in check.grants.policies().items():
        decided = [(request, asked) for request, asked in allowed if any(policy is one for one in policies_of(check.grants, asked, request))]
        for loss in losses.losses(policy):
            concerned = tuple((request, asked) for request, asked in decided if loss.concerns(request.action))
            yield Need(Part(subject, loss.statement, loss.lost), check.grants.exchanged(subject, loss.policy), concerned)


# ---- the questions ---------------------------------------------------------------------------------------------------


class Questions:
    """Everything that the simulator is asked in one run, each question once."""

    def __init__(self):
        self.identities = {}
        self.resources = {}
        self.numbers = {}
        self.answers = []
        self.without_resource = set()

    def add(self, check):
        """Asks about all cases of a stack, and about what they need."""
        asked = [(check.grants, request, subject) for request, subject in requests_of(check)]
        asked += [(need.grants, request, subject) for need in check.needs for request, subject in need.requests]
        for grants, request, subject in asked:
            self.numbers.setdefault(self.question(grants, subject, request), len(self.numbers))

    def question(self, grants, subject, request):
        """The request, with the policies that decide it."""
        identity, resource = policies_of(grants, subject, request)
        return json.dumps(
            {
                "identity": number_of(identity, self.identities),
                "resource": number_of(resource, self.resources),
                "principal": request.principal,
                "action": request.action,
                "on": request.resource,
                "context": dict(request.context),
            }
        )

    def ask(self):
        """Runs the simulator."""
        if not (HERE / "node_modules").is_dir():
            sys.exit("policy: the simulator is not installed; run: npm ci --prefix tests/policy")
        asked = {
            "account": calls.ACCOUNT,
            "identities": list(map(json.loads, self.identities)),
            "resources": list(map(json.loads, self.resources)),
            "questions": list(map(json.loads, self.numbers)),
        }
        run = subprocess.run(["node", HERE / "simulate.mjs"], input=json.dumps(asked), capture_output=True, text=True, timeout=SIMULATOR_LIMIT)
        if run.returncode != 0:
            sys.exit(f"policy: the simulator ended with {run.returncode}: {run.stderr.strip()}; is it installed as tests/policy/package-lock.json says?")
        told = json.loads(run.stdout)
        self.answers, self.without_resource = told["answers"], set(told["withoutResource"])

    def answer(self, grants, subject, request):
        """What the simulator said to it."""
        return self.answers[self.numbers[self.question(grants, subject, request)]]


def number_of(policy, policies):
    """The number under which the simulator is given a policy, if there is one."""
    return None if policy is None else policies.setdefault(json.dumps(policy), len(policies))


def requests_of(check):
    """(request, subject) of everything that is to be asked about a stack."""
    for case in check.cases:
        for request in case.requests:
            yield request, case.subject
        for neighbour in case.neighbours:
            yield neighbour.request, case.subject


def policies_of(grants, subject, request):
    """The policy of who asks, and the policy of what is asked for."""
    if subject in grants.roles:
        # Of all that the roles use, a policy of its own decides only about keys; another account's key is refused whatever that account says.
        key_policy = grants.resources["policy of Key"] if request.resource == granted.KEY else cases.GIVEN_KEYS_POLICY
        return grants.roles[subject], key_policy if ":kms:" in request.resource else None
    return EVERYTHING if request.principal.startswith("arn:") else None, grants.resources[subject]


def ask(checks):
    """Asks the simulator about all stacks at once."""
    questions = Questions()
    for check in checks:
        questions.add(check)
    questions.ask()
    return questions


# ---- the answers -----------------------------------------------------------------------------------------------------


def judge(checks, questions):
    """Holds the answers against what they must be, and notes in each stack what is not so."""
    for check in checks:
        judge_cases(check, questions)
    judge_needs(checks, questions)


def judge_cases(check, questions):
    """What must be allowed is, and its neighbours are refused."""
    for case in check.cases:
        for request in case.requests:
            answer = questions.answer(check.grants, case.subject, request)
            check.expect(answer == "Allowed", f"{told(case, request)} must be allowed, and is {worded(answer)}")
        for neighbour in case.neighbours:
            answer = questions.answer(check.grants, case.subject, neighbour.request)
            check.expect(answer in REFUSALS, f"{told(case, neighbour.request)} must be refused ({neighbour.field}: {neighbour.value}), and is {worded(answer)}")
    if check.grants:
        for role, policy in check.grants.roles.items():
            for statement in policy["Statement"]:
                if "*" in as_list(statement.get("Resource", [])):
                    narrower = sorted(set(as_list(statement.get("Action", []))) - questions.without_resource)
                    check.expect(not narrower, f"{role}, {statement.get('Sid')}: Resource is *, but IAM knows resources for {narrower}: name them")


def judge_needs(checks, questions):
    """Without a part of a policy, some request is refused. A part that one stack does not need may be there for another, so all of them count together."""
    needed = {
        need.part
        for check in checks
        for need in check.needs
        if any(questions.answer(need.grants, subject, request) in REFUSALS for request, subject in need.requests)
    }
    for check in checks:
        for part in [need.part for need in check.needs if need.part not in needed]:
            check.expect(False, f"{part.subject}, {part.statement}: nobody needs {part.name}: take it out of template.yaml, or say in tests/policy/cases.py who does")


def told(case, request):
    """A request in words."""
    context = "".join(f", with {key} {value}" for key, value in request.context)
    return f"{case.subject}: {request.action} on {request.resource} by {request.principal}{context}"


def worded(answer):
    """The simulator's answer in words."""
    if answer == "Allowed":
        return "allowed"
    return "refused" if answer.endswith("Denied") else f"not judged by the simulator ({answer})"


# ---- the report ------------------------------------------------------------------------------------------------------


def report(checks, stories):
    """What was allowed and what next to it was refused, over all stacks."""
    groupless = sum(stories.groupless.values())
    print(f"stories: {stories.exchanges} exchanges in {stories.transcripts} transcripts; {groupless} are left out, as no answer told the deployment's group")
    print(f"calls: {len(stories.calls)} distinct ones of {len(stories.actions())} actions, {len(stories.shapes())} if one instance's id is like another's")
    print(f"stacks: {', '.join(check.stack.name for check in checks)}")
    table = {}
    for check in checks:
        for case in check.cases:
            row = table.setdefault(case.subject, {}).setdefault(case.action, Row())
            row.add(case)
    for subject, actions in table.items():
        print(f"\n{subject}")
        for action, row in actions.items():
            print(f"  {action:<84} {row.allowed:>4} allowed")
            print(f"    on {', '.join(row.example)}" + "".join(f"; {reason}" for reason in sorted(row.reasons)))
            for (changed, value), times in row.denied.items():
                print(f"      {changed:<30} {value:<51} {times:>4} denied")
    rows = [row for actions in table.values() for row in actions.values()]
    kinds = sum(len(row.denied) for row in rows)
    print(f"\n{sum(row.allowed for row in rows)} allowed; {sum(sum(row.denied.values()) for row in rows)} neighbours denied, of {kinds} kinds")
    needs = [need for check in checks for need in check.needs]
    parts, asked = len({need.part for need in needs}), sum(len(need.requests) for need in needs)
    print(f"{parts} parts of the policies, each left out once: each time one of the allowed is refused, of {asked} asked about again")


@dataclass
class Row:
    """One action that a policy allows, over all stacks and calls."""

    allowed: int = 0
    example: tuple = ()
    reasons: set = field(default_factory=set)
    # By the field that was changed and what it was changed to.
    denied: Counter = field(default_factory=Counter)

    def add(self, case):
        """Counts a case."""
        self.allowed += bool(case.requests)
        self.example = self.example or tuple(request.resource for request in case.requests)
        self.reasons |= {case.reason} - {""}
        self.denied.update((neighbour.field, neighbour.value) for neighbour in case.neighbours)


def main():
    """Tells all problems at once, or the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("transcripts", metavar="DIR", type=pathlib.Path, help="folder of the stories' transcripts")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        stories = calls.read(arguments.transcripts)
        source = granted.read_template()
        checks = [prepare(source, stack, stories) for stack in cases.STACKS]
    except calls.Unreadable as error:
        sys.exit(f"policy: {error}")
    judge(checks, ask(checks))
    problems = [problem for check in checks for problem in check.problems]
    if not problems:
        report(checks, stories)
    for problem in problems:
        print(f"policy: {problem}", file=sys.stderr)
    print(f"policy: {len(problems)} problems, {time.monotonic() - started:.1f} s")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
