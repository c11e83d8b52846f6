"""What a policy can lose: each statement that allows something, and each value that such a statement names beside others.

Neighbours show that what stands in a policy is narrow enough, but not that nothing stands beside it that nobody asks about: another resource, another principal.
"""

import copy
import functools
import operator
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatchcase

from granted import as_list


@dataclass(frozen=True)
class Loss:
    """A policy that lost something of one of its statements."""

    statement: str
    actions: list[str]
    lost: str
    # What is left of the policy.
    policy: dict

    def concerns(self, name):
        """Whether the statement is about an action; no request for another can depend on it."""
        return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in self.actions)


def losses(policy):
    """Each loss that leaves less allowed than before."""
    times = Counter()
    for place, statement in enumerate(policy["Statement"]):
        before, after = policy["Statement"][:place], policy["Statement"][place + 1 :]
        sid = statement.get("Sid", "the statement without a Sid")
        times[sid] += 1
        # So that one which is not needed never passes for its namesake.
        name = sid if times[sid] == 1 else f"{sid} ({times[sid]})"
        actions = as_list(statement.get("Action", "*"))
        if statement["Effect"] == "Allow":
            yield Loss(name, actions, "this statement", policy | {"Statement": [*before, *after]})
        for path, value in values_beside_others(statement):
            yield Loss(name, actions, " ".join([*path, value]), policy | {"Statement": [*before, without(statement, path, value), *after]})


def values_beside_others(statement):
    """(path, value) of each value that is not the only one in its place; of what a Deny names, only the exceptions, since fewer of them leave less allowed."""
    if statement["Effect"] == "Deny":
        places = [[("NotAction",)], [("NotResource",)]]
    else:
        places = [[("Action",)], [("Resource",)]]
        places += [[("Condition", test, key)] for test, keys in statement.get("Condition", {}).items() for key in keys]
        # A principal of one kind stands beside those of the others.
        principals = statement.get("Principal")
        places += [[("Principal", kind) for kind in principals]] if isinstance(principals, dict) else []
    for paths in places:
        found = [(path, value) for path in paths if path[0] in statement for value in as_list(value_at(statement, path))]
        yield from found if len(found) > 1 else []


def value_at(statement, path):
    """What stands at the end of a path."""
    return functools.reduce(operator.getitem, path, statement)


def without(statement, path, value):
    """The statement without a value; a kind of principal that has no other goes with it."""
    left = copy.deepcopy(statement)
    place = value_at(left, path[:-1])
    kept = list(as_list(place[path[-1]]))
    kept.remove(value)
    if kept:
        place[path[-1]] = kept
    else:
        del place[path[-1]]
    return left
