#!/usr/bin/env python3
"""Parses document/restart-agent.ps1, and refuses in it what would break its contract, or what Windows PowerShell would only find while it runs.

    tests/document/check_powershell.py            # the check
    tests/document/check_powershell.py --planted  # the check, and then the faults of faults.toml, each of which has to be found

It runs nothing; tests/windows does, on a simulated Windows, and the check holds the two together. The rules of the language are in
language.py, on the tree of powershell.py; those of this script here. Each is a function that gives the places and what is wrong with them; its comment says why.

Needs tree-sitter and tree-sitter-pwsh, and Cargo, which runs the test that tells of the function (tests/template/facts.py). Prints every problem, one a line, and
ends with 1 if there is any.
"""

import functools
import pathlib
import re
import sys
import tomllib

import language
import powershell
from language import at, handed_blocks

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/template"))

import facts

SCRIPT = "document/restart-agent.ps1"
# The functions of the seam, simulated; what they stand on; what is played with them.
SIMULATED, WORLD, CASES = "tests/windows/seam.ps1", "tests/windows/world.ps1", "tests/windows/cases.ps1"
README = "document/README.md"

SEAM = "Windows: all that touches it"
START = "the start"
# The one function that may catch the end of the run, which is an exception; what it tries; and what that begins with.
CATCHER, STORY, READING = "Invoke-Script", "Invoke-Restart", "Read-Installation"
# What the comment of a function of the seam says when it catches everything itself; and those that cannot fail, or after which there is nothing left to do.
CALM = "Does not throw"
CALM_BY_NATURE = {"Get-Now", "Get-TimeOfDay", "Get-OwnId", "Wait-Seconds", "Write-Line"}

# Outside the seam: cmdlets that are the same on any machine; not the variables that tell of this one.
PURE_CMDLETS = {"ForEach-Object", "Select-Object", "Set-StrictMode", "Where-Object"}
OF_THIS_MACHINE = {"pid", "pshome", "pscommandpath"}
# And types that only compute, with some of their static members. Files are read on the simulated Windows too, where they are real.
PURE_TYPES = {
    "DateTime": {"MinValue", "MaxValue", "TryParseExact"},
    "Globalization.CultureInfo": {"InvariantCulture"},
    "Environment": {"ExpandEnvironmentVariables"},
    "Math": {"Abs", "Floor", "Max", "Min"},
    "System.IO.File": {"Exists", "ReadAllLines", "ReadAllText"},
    "System.IO.Path": {"Combine", "GetFileName", "IsPathRooted"},
    "TimeZoneInfo": {"Local"},
}
CASTS = {"int", "long", "double", "string", "DateTime", "ref"}

# The only thing that is ever written, and the only exit.
ONE_OUTPUT = "[Console]::Out.WriteLine($Line)"
ONE_EXIT = "exit $ExitCode"
# Nobody ends a process, not the script's own host either.
ENDING_METHODS = {"kill", "terminate", "failfast", "exit", "setshouldexit"}
FORBIDDEN_WORDS = ("3010", r"Stop-Process", r"Stop-Service", r"Restart-Service", r"taskkill\.exe", r"Write-(?!Line\b)\w+", r"Out-\w+", r"2>", r"\bshutdown\b")
# The members of the line, in the order of the contract.
LINE = ["agentRestart", "result", "code", "agentVersion", "memoryBeforeKiB", "memoryAfterKiB", "seconds", "detail"]
# Where a code and a word are handed on that stand elsewhere, as (function, code, word).
HANDED_ON = {
    ("Complete-Proven", "0", "$Result"),
    ("Complete-Proven", "$disproof.Code", "$disproof.Result"),
    ("Complete-Run", "$Code", "$Result"),
    ("New-Disproof", "$Code", "$Result"),
}


# ---- what the rules ask ---------------------------------------------------------------------------------------------------------------------------------------


def in_seam(script, node):
    """Whether it stands in the part of the script that touches Windows."""
    return script.heading(node) == SEAM


def seam(script):
    """The functions of that part."""
    return [function for function in script.functions.values() if function.heading == SEAM]


def catches_all(attempt):
    """Whether a `try` lets nothing through: a `catch` for everything, and no `throw` in it."""
    clauses = attempt.below("catch_clause")
    own = [clause for clause in clauses if clause.parent.parent is attempt]
    return any(clause.child("catch_type_list") is None for clause in own) and not any(is_throw(node) for clause in own for node in clause.walk())


def is_throw(node):
    """Whether it is a statement that throws."""
    return node.kind == "flow_control_statement" and node.children[0].kind == "throw"


def guarded(node):
    """Whether what is thrown here is caught in the same function: it stands in the body of a `try` that lets nothing through."""
    inner = node
    for outer in node.above():
        if outer.kind == "function_statement":
            return False
        if outer.kind == "try_statement" and inner is outer.child("statement_block") and catches_all(outer):
            return True
        inner = outer
    return False


# ---- the state ----------------------------------------------------------------------------------------------------------------------------------------------------


def late_state(script):
    """What belongs to the whole script has a value before anybody asks for it: from the top, or from the start of the run, or from the reading of the installation; but not
    everybody runs after that one."""
    at_the_top = {each.key for each in script.assignments if each.home is None}
    restart, reading = (next((call for call in script.calls if call.name == name), None) for name in (STORY, READING))
    if restart is None or reading is None or reading.home is None or reading.home.name != STORY:
        yield script.root, f"{STORY}, which calls {READING}, was not found"
        return
    others = [call for call in script.calls_in[restart.home] if call is not restart]
    others += [call for call in script.calls_in[reading.home] if call.node.start < reading.node.start]
    early = {CATCHER}.union(*({call.name} | script.reached.get(call.name, set()) for call in others))
    setters = {}
    for each in script.assignments:
        if each.script and each.key not in at_the_top:
            setters.setdefault(each.key, set()).add(at(script, each.home))
    for read in script.reads:
        by = setters.get(read.key, set())
        if read.key not in setters or read.scope == "env" or (read.scope != "script" and read.key in script.locals.get(read.home, ())):
            continue
        if not by & {CATCHER, READING}:
            yield read.node, f"{read.node.text} has no value at the top; {', '.join(sorted(by))} may run later than {at(script, read.home)}"
        elif CATCHER not in by and at(script, read.home) in early:
            yield read.node, f"{read.node.text} has its value from {READING}, which may run later than {at(script, read.home)}"


# ---- errors ---------------------------------------------------------------------------------------------------------------------------------------------------


def bare_ways(script):
    """The functions that are reached from the script's top without a `try` on the way, each with that way. A script block belongs to the function in which it stands."""
    ways = {None: []}
    pending = [None]
    while pending:
        home = pending.pop(0)
        for call in script.calls_in[home]:
            function = script.functions.get(call.name)
            if function is not None and function not in ways and not guarded(call.node):
                ways[function] = [*ways[home], function.name]
                pending.append(function)
    return ways


def uncaught_errors(script):
    """Whatever Windows throws, the run ends with its line: what may throw is reached only through a `try`."""
    throwing = {function.name for function in seam(script) if CALM not in function.comment} - CALM_BY_NATURE
    throwing |= {at(script, script.home(node)) for node in script.of("flow_control_statement") if is_throw(node) and not guarded(node)}
    for function, way in bare_ways(script).items():
        if function is not None and function.name in throwing:
            yield function.node, f"{' > '.join(way)}: may throw, and no try is on the way"


def broken_promises(script):
    """A function that says that it does not throw is nothing but a `try` that lets nothing through."""
    for function in script.functions.values():
        if CALM in function.comment and function.name not in CALM_BY_NATURE:
            for statement in next(iter(function.node.below("statement_list"))).children:
                if statement.named and statement.kind not in ("comment", "empty_statement") and not (statement.kind == "try_statement" and catches_all(statement)):
                    yield statement, f"{function.name} says that it does not throw, and {statement.text[:60]!r} may"


def swallowed_ends(script):
    """The run is ended by an exception, which only Invoke-Script may catch. A script block that is handed over counts as tried: Get-Answer does so."""
    ending = {name for name, reached in script.reached.items() if "Complete-Run" in reached} | {"Complete-Run"}
    tried = [block for _, block in handed_blocks(script)]
    for attempt in script.of("try_statement"):
        if attempt.child("catch_clauses") is not None and at(script, script.home(attempt)) != CATCHER:
            tried.append(attempt.child("statement_block"))
    for body in tried:
        for call in script.calls:
            if call.name in ending and any(above is body for above in call.node.above()):
                yield call.node, f"{call.name} may end the run, which a catch in {at(script, call.home)} would swallow"


# ---- the seam -------------------------------------------------------------------------------------------------------------------------------------------------


def outside_problems(script):
    """What touches the machine outside the seam: on the simulated Windows it would meet the real one."""
    for call in script.calls:
        # Which of its parameters it was given, and the environment, the script itself asks at its top.
        asks_for_parameter = call.name == "Test-Path" and call.home is None and call.node.text.startswith("Test-Path -Path 'variable:")
        if call.name in language.CMDLETS and call.name not in PURE_CMDLETS and not in_seam(script, call.node) and not asks_for_parameter:
            yield call.node, f"{call.name} outside the seam"
    for literal in script.of("type_literal"):
        if not in_seam(script, literal):
            yield from outside_type_problems(literal)
    own = {each.key for each in script.assignments if each.home is None and in_seam(script, each.node)}
    for read in script.reads:
        if read.key in OF_THIS_MACHINE | own and not in_seam(script, read.node):
            yield read.node, f"{read.node.text} outside the seam"
        if read.scope == "env" and read.home is not None:
            yield read.node, f"{read.node.text} is read elsewhere than at the top"


def outside_type_problems(literal):
    """A type outside the seam that is not one of those that only compute."""
    name = literal.text[1:-1]
    if language.is_static(literal.parent):
        member = literal.parent.child("member_name").text
        if member not in PURE_TYPES.get(name, ()):
            yield literal, f"{literal.text}::{member} outside the seam"
    elif name not in CASTS and not name.endswith("Exception"):
        yield literal, f"{literal.text} outside the seam"


def simulation_problems(script, simulated, world):
    """The simulated Windows puts itself in the place of the seam, of all of it and of nothing else: same functions, same parameters, and no name of the script's besides."""
    theirs = {name: function for name, function in simulated.functions.items() if "-Sim" not in name}
    ours = {function.name: function for function in seam(script)}
    for name in sorted(set(ours) - set(theirs)):
        yield ours[name].node, f"{name}: {SIMULATED} does not simulate it"
    for name in sorted(set(theirs) - set(ours)):
        yield script.root, f"{SIMULATED} has {name}, which the seam has not"
    both = set(ours) & set(theirs)
    for name in sorted(both):
        if ours[name].parameters != theirs[name].parameters:
            yield ours[name].node, f"{name} has the parameters {ours[name].parameters}, in {SIMULATED} {theirs[name].parameters}"
    for file, other in ((SIMULATED, simulated), (WORLD, world)):
        for name in sorted(set(other.functions) & set(script.functions) - (both if other is simulated else set())):
            yield script.functions[name].node, f"{file} has a function {name}, too"
        for key in sorted({each.key for each in other.assignments if each.home is None} & script.state):
            yield script.root, f"{file} assigns ${key}, which is the script's"


# ---- the contract -----------------------------------------------------------------------------------------------------------------------------------------------


def contract_problems(script):
    """What the contract forbids, wherever it stands: ending processes, the reboot code, the error stream, other ends than the one line."""
    exits = [node for node in script.of("flow_control_statement") if node.children[0].text.lower() == "exit"]
    for node in exits:
        if node.text != ONE_EXIT or script.heading(node) != START or script.home(node) is not None:
            yield node, f"{node.text!r}: the only exit is {ONE_EXIT!r} at the end"
    if not exits:
        yield script.root, "it has no exit, and so no code of its own"
    for node in script.of("member_name"):
        if node.text.lower() in ENDING_METHODS:
            yield node, f".{node.text}: no process is ended"
        if node.text in ("Write", "WriteLine", "Error") and node.parent.parent.text != ONE_OUTPUT and node.parent.text != ONE_OUTPUT:
            yield node, f"{node.parent.parent.text!r}: only the one line is written"
    code = bytearray(script.source)
    for node in script.of("comment"):
        code[node.start : node.end] = b" " * (node.end - node.start)
    for word in FORBIDDEN_WORDS:
        for found in re.finditer(word, code.decode(errors="replace"), re.I):
            yield script.root, f"{found.group()} at line {code[: found.start()].count(10) + 1}"


def top_problems(script):
    """The top only defines: tests/windows takes it as it is, up to the start, which runs it. A value that stood there alone would be printed before the line."""
    starts = []
    for node in script.root.child("statement_list").children:
        if not node.named or node.kind in ("comment", "function_statement", "empty_statement"):
            continue
        if script.heading(node) == START:
            starts.append(node.text)
        elif node.kind == "if_statement" and len(node.below("assignment_expression")) == len(node.below("statement_block")) == len(node.below("statement_list")) == 1:
            continue
        elif not (node.kind == "pipeline" and (node.children[0].kind == "assignment_expression" or node.text.startswith("Set-StrictMode -Version "))):
            yield node, f"{node.text[:60]!r} at the top, which only defines"
    if starts != ["$null = Invoke-Script $args", ONE_EXIT]:
        yield script.root, f"the start is {starts}"


def understood():
    """Each code of the contract with its words, as the function knows them."""
    return {(result["code"], result["word"]) for result in facts.read()["results"]}


def line_problems(script):
    """The line has the contract's members in their order, and is written in one place."""
    text = script.functions["Format-Verdict"].node.text if "Format-Verdict" in script.functions else ""
    members = re.findall(r"[{,]\"([A-Za-z]+)\":", text)
    if members != LINE:
        yield script.root, f"the line has the members {members}, the contract has {LINE}"
    writers = [at(script, call.home) for call in script.calls if call.name == "Write-Line"]
    if writers != [CATCHER]:
        yield script.root, f"the line is written by {writers}"


def ends(script):
    """Every end that the script can come to, as (place, code, word), both as literals; None where they are computed, and not only handed on."""
    places = []
    for call in script.calls:
        if call.name in ("Complete-Run", "New-Disproof") and len(call.arguments) == 3:
            places.append((call.node, *call.arguments[:2]))
        elif call.name == "Complete-Proven" and call.arguments:
            places.append((call.node, 0, call.arguments[0]))
    for table in script.of("hash_literal_expression"):
        entries = {entry.child("key_expression").unwrapped().text: entry.children[2] for entry in table.below("hash_entry")}
        if {"Code", "Result"} <= set(entries):
            places.append((table, entries["Code"], entries["Result"]))
    for each in script.assignments:
        if each.name == "Result" and each.value is not None:
            places.append((each.node, 0, each.value))
    for place, code, word in places:
        texts = (at(script, script.home(place)), *(str(part) if isinstance(part, int) else part.text for part in (code, word)))
        if texts not in HANDED_ON:
            yield place, *(part if isinstance(part, int) else part.literal() for part in (code, word))


def end_problems(script):
    """Every end of the script is one that the function understands, and each of those can happen."""
    contract = understood()
    possible = set()
    for place, code, word in ends(script):
        possible.add((code, word))
        # Healthy: no end yet, the caller knows the word.
        if (code, word) not in contract and (code, word) != (0, ""):
            yield place, f"the function does not understand {word!r} with code {code}: {place.text[:80]!r}"
    for code, word in sorted(contract - possible):
        yield script.root, f"the script never ends with {word!r} and code {code}"


def literals(node):
    """The literals of a list, or the only one; None where one is computed."""
    node = node.unwrapped()
    if node.kind == "array_literal_expression":
        return [child.literal() for child in node.children if child.named]
    if node.kind == "array_expression":
        inner = node.child("statement_list")
        return literals(inner.children[0]) if inner else []
    return [node.literal()]


def case_problems(cases):
    """The cases of the simulated Windows expect nothing but what the contract has; and each of its ends is expected by a case that takes nothing else."""
    contract = understood()
    expected = set()
    for call in cases.calls:
        if call.name != "Add-Case" or len(call.arguments) != 2:
            continue
        table = call.arguments[1].unwrapped()
        if table.kind != "hash_literal_expression":
            yield call.node, f"a case whose expectations are computed: {call.node.text[:80]!r}"
            continue
        body = table.child("hash_literal_body")
        entries = {entry.child("key_expression").unwrapped().text: entry.children[2] for entry in (body.children if body else []) if entry.kind == "hash_entry"}
        if "Kill" in entries:
            continue
        codes = literals(entries["Code"]) if "Code" in entries else [0]
        words = literals(entries["Word"]) if "Word" in entries else []
        pairs = {(code, word) for code, word in contract if code in codes and (word in words or not words)}
        odd = [code for code in codes if code not in {code for code, _ in pairs}] + [word for word in words if word not in {word for _, word in pairs}]
        if odd:
            yield call.node, f"the contract has no {' and no '.join(map(str, odd))} among {codes} {words}"
        if len(pairs) == 1:
            expected |= pairs
    for code, word in sorted(contract - expected):
        yield cases.root, f"no case expects {word!r} with code {code}, and nothing else"


def readme_problems(script, readme):
    """The table of facts about Windows names functions and variables that honour them: each of these is there."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", readme.partition("\n## Windows\n")[2].partition("\n## ")[0], re.M)
    names = {name for _, honoured in rows for name in re.findall(r"`([A-Z][a-z]+-[A-Z]\w+|\$[A-Z]\w+)`", honoured)}
    if not names:
        yield script.root, f"{README} has no table of facts about Windows"
    for name in sorted(names):
        if name not in script.functions and name.lstrip("$").lower() not in script.state:
            yield script.root, f"{README} names {name}, which is not there"


# ---- all of it --------------------------------------------------------------------------------------------------------------------------------------------------

RULES = (
    *language.RULES,
    late_state,
    uncaught_errors,
    broken_promises,
    swallowed_ends,
    outside_problems,
    contract_problems,
    top_problems,
    line_problems,
    end_problems,
)


@functools.lru_cache(maxsize=8)
def parsed(source):
    """The script of a text."""
    return powershell.Script(source)


def all_problems(sources):
    """Everything that is wrong in files as {path: text}, as `file:line: problem`. What is no PowerShell is not looked at any further."""
    files = {file: parsed(source) for file, source in sources.items() if file.endswith(".ps1")}
    script = files[SCRIPT]
    broken = [(file, *problem) for file, each in files.items() for problem in language.syntax_problems(each)]
    yield from (f"{file}:{node.line}: {problem}" for file, node, problem in broken)
    if not broken:
        for rule in RULES:
            yield from (f"{SCRIPT}:{node.line}: {problem}" for node, problem in rule(script))
        yield from (f"{SCRIPT}:{node.line}: {problem}" for node, problem in simulation_problems(script, files[SIMULATED], files[WORLD]))
        yield from (f"{SCRIPT}:{node.line}: {problem}" for node, problem in readme_problems(script, sources[README].decode()))
        yield from (f"{CASES}:{node.line}: {problem}" for node, problem in case_problems(files[CASES]))


def planted(sources):
    """The faults of faults.toml: each with its name, a word that its problem has to hold, and the files with it; None where its place is gone, or not the only one. `also`
    are further replacements, which make it one fault."""
    for fault in tomllib.loads((pathlib.Path(__file__).parent / "faults.toml").read_text())["fault"]:
        file = fault.get("file", SCRIPT)
        text = sources[file]
        for find, replace in [(fault["find"], fault["replace"]), *fault.get("also", [])]:
            text = text.replace(find.encode(), replace.encode()) if text is not None and text.count(find.encode()) == 1 else None
        yield fault["name"], fault["says"], None if text is None else {**sources, file: text}


def main():
    """Checks the script, and if asked to, that the check can fail."""
    wishes = sys.argv[1:]
    if wishes not in ([], ["--planted"]):
        sys.exit(__doc__)
    sources = {file: (ROOT / file).read_bytes() for file in (SCRIPT, SIMULATED, WORLD, CASES, README)}
    problems = list(all_problems(sources))
    print(f"PowerShell: {SCRIPT} {'has problems' if problems else 'holds to its rules; it was not run'}")
    if wishes and not problems:
        faults = list(planted(sources))
        for name, word, wrong in faults:
            if wrong is None:
                problems.append(f"not planted, its place is gone, or not the only one: {name}")
                continue
            if not any(word in problem for problem in all_problems(wrong)):
                problems.append(f"planted and not found as {word!r}: {name}; found {list(all_problems(wrong))}")
        print(f"PowerShell: {len(faults) - len(problems)} of {len(faults)} planted faults found")
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
