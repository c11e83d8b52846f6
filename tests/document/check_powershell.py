#!/usr/bin/env python3
"""Parses document/restart-agent.ps1, and refuses in it what would break its contract. It does not run it: that needs Windows.

    tests/document/check_powershell.py            # the check
    tests/document/check_powershell.py --planted  # the check, and then mistakes in the script, each of which has to be found

Needs tree-sitter and tree-sitter-pwsh, and Cargo, which runs the test that tells of the function (tests/template/facts.py). Prints every problem, one a line, and
ends with 1 if there is any.
"""

import pathlib
import re
import sys

import tree_sitter
import tree_sitter_pwsh

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/template"))

import facts

SCRIPT = ROOT / "document/restart-agent.ps1"

# The commands of Windows PowerShell 5.1 that the script may use, each with the parameters it may name. Everything else that is called has to be a function of
# the script. So aliases, mistyped names and every cmdlet that ends processes or writes to another stream are refused, without a list of what is bad.
CMDLETS = {
    "ForEach-Object": set(),
    "Get-CimInstance": {"ClassName", "Filter", "OperationTimeoutSec"},
    "Get-Content": {"LiteralPath", "Tail"},
    "Join-Path": {"Path", "ChildPath"},
    "New-Object": {"TypeName", "ArgumentList"},
    "Select-Object": {"Last"},
    "Set-StrictMode": {"Version"},
    "Sort-Object": {"Property"},
    "Start-Process": {"FilePath", "ArgumentList", "WindowStyle"},
    "Start-Sleep": {"Seconds", "Milliseconds"},
    "Test-Path": {"Path"},
    "Where-Object": set(),
}
# Syntax that the parser knows and Windows PowerShell 5.1 does not.
NEWER_NODES = {"ternary_expression", "null_coalesce_expression", "null_coalescing_expression", "pipeline_chain_tail"}
NEWER_TOKENS = {"??", "??=", "?.", "?[", "&&", "||", "?", ":?"}
# The longest command line that the shell takes (INTERNET_MAX_URL_LENGTH), which starts the follow-up.
MAX_SHELL_COMMAND = 2048
# The only thing that is ever written.
ONE_OUTPUT = "[Console]::Out.WriteLine($line)"
# The members of the line, in the order of the contract.
LINE = ["agentRestart", "result", "code", "agentVersion", "memoryBeforeKiB", "memoryAfterKiB", "seconds", "detail"]
# Nodes that are statements of their own.
STATEMENTS = {"pipeline", "if_statement", "for_statement", "while_statement", "flow_control_statement", "try_statement"}


def parse(source):
    """The syntax tree of a script."""
    language = tree_sitter.Language(tree_sitter_pwsh.language())
    return tree_sitter.Parser(language).parse(source).root_node


def walk(node):
    """The node and everything below it, in the order of the text."""
    yield node
    for child in node.children:
        yield from walk(child)


def text_of(node):
    """The part of the script that the node stands for."""
    return node.text.decode("utf-8", errors="replace")


def syntax_problems(root):
    """Places that are no PowerShell."""
    for node in walk(root):
        if node.is_error or node.is_missing:
            kind = f"{node.type} is missing" if node.is_missing else "syntax error"
            yield node, f"{kind}: {text_of(node)[:80]!r}"


def newer_syntax(root):
    """Places that only newer versions of PowerShell understand."""
    for node in walk(root):
        if node.type in NEWER_NODES or (not node.is_named and node.type in NEWER_TOKENS):
            yield node, f"{node.type} is not known to Windows PowerShell 5.1"


def called(command):
    """The name of a command as it is written; None when it is computed."""
    name = next((child for child in command.children if child.type == "command_name"), None)
    return None if name is None else text_of(name)


def parameters_of(command):
    """The parameters that a command names, with their places; not those of commands in its arguments."""
    pending = [child for child in command.children if child.type != "command_name"]
    while pending:
        node = pending.pop()
        if node.type == "command_parameter":
            yield node, text_of(node).lstrip("-").rstrip(":")
        elif node.type not in ("command", "script_block_expression", "parenthesized_expression", "sub_expression", "array_expression"):
            pending.extend(node.children)


def command_problems(root):
    """Calls of something else than the script's functions and the listed cmdlets, or with parameters that these have not."""
    functions = {text_of(node) for node in walk(root) if node.type == "function_name"}
    commands = [node for node in walk(root) if node.type == "command"]
    for name in sorted(functions - {called(command) for command in commands}):
        yield root, f"the function {name} is never called"
    for command in commands:
        name = called(command)
        if name is None:
            if text_of(command).startswith("& ($env:SystemRoot + '\\System32\\sc.exe') start codedeployagent"):
                continue
            yield command, f"a command that is computed: {text_of(command)[:80]!r}"
        elif name in CMDLETS:
            for place, parameter in parameters_of(command):
                if parameter not in CMDLETS[name]:
                    yield place, f"{name} is not known here to have a parameter {parameter}"
        elif name not in functions:
            yield command, f"{name} is neither a function of this script nor a listed cmdlet"


def contract_problems(root, source):
    """What the contract forbids, wherever it stands: ending processes, the reboot code, the error stream, other ends than the one line."""
    follow_up = follow_up_block(root)
    for node in walk(root):
        if node.type == "flow_control_statement" and re.match(r"exit\b", text_of(node), re.I):
            inside = follow_up is not None and follow_up.start_byte <= node.start_byte < follow_up.end_byte
            if text_of(node) != ("exit 0" if inside else "exit $Code"):
                yield node, f"{text_of(node)!r}: only Complete-Run ends the script, with its code"
        if node.type == "member_name" and text_of(node).lower() in ("kill", "terminate", "failfast", "exit", "setshouldexit"):
            yield node, f".{text_of(node)}: no process is ended"
        if node.type == "member_name" and text_of(node) in ("Write", "WriteLine", "Error") and text_of(node.parent.parent) != ONE_OUTPUT:
            yield node, f"{text_of(node.parent.parent)!r}: only the one line is written"
    code = bytearray(source)
    for node in walk(root):
        if node.type == "comment":
            code[node.start_byte : node.end_byte] = b" " * (node.end_byte - node.start_byte)
    for word in (rb"3010", rb"Stop-Process", rb"Stop-Service", rb"Restart-Service", rb"taskkill", rb"Write-\w+", rb"Out-\w+", rb"2>", rb"shutdown"):
        for found in re.finditer(word, bytes(code), re.I):
            yield root, f"{found.group().decode()} at line {source[: found.start()].count(10) + 1}"


def understood():
    """Each code of the contract with its words, as the function knows them."""
    return {(result["code"], result["word"]) for result in facts.read()["results"]}


def line_problems(root):
    """The line has the contract's members in their order, and every end of the script is one that the function understands; each of those can happen."""
    text = text_of(root)
    members = re.findall(r"[{,]\"([A-Za-z]+)\":", text.split("function Complete-Run", 1)[-1].split("WriteLine", 1)[0])
    if members != LINE:
        yield root, f"the line has the members {members}, the contract has {LINE}"
    ends = {(int(code), word) for code, word in re.findall(r"\b(?:Complete-Run|New-Disproof) (\d+) '([a-z-]+)'", text)}
    ends |= {(0, word) for word in re.findall(r"(?:Complete-Proven|\$result =) '([a-z-]+)'", text)}
    for code, word in sorted(ends - understood()):
        yield root, f"the function does not understand {word!r} with code {code}"
    for code, word in sorted(understood() - ends):
        yield root, f"the script never ends with {word!r} and code {code}"


def follow_up_block(root):
    """The script block that is assigned to $FollowUp."""
    for node in walk(root):
        if node.type == "assignment_expression" and text_of(node).startswith("$FollowUp ="):
            return next((inner for inner in walk(node) if inner.type == "script_block_expression"), None)
    return None


def follow_up_problems(root):
    """The follow-up survives being put on one line between double quotes, and that line is short enough."""
    block = follow_up_block(root)
    if block is None:
        yield root, "there is no $FollowUp"
        return
    # As the script itself does it: without the braces, each line break with the spaces around it as one space.
    line = re.sub(r"\s*\r?\n\s*", " ", text_of(block)[1:-1])
    if '"' in line:
        yield block, "$FollowUp holds double quotes, between which it is handed over"
    if any(node.type == "comment" for node in walk(block)):
        yield block, "$FollowUp holds a comment, which would end only at the end of its one line"
    command = f"& {{{line}}} 4294967295"
    for _, problem in syntax_problems(parse(command.encode())):
        yield block, f"$FollowUp on one line: {problem}"
    statements = sum(1 for node in walk(block) if node.type in STATEMENTS)
    on_one_line = sum(1 for node in walk(parse(command.encode())) if node.type in STATEMENTS)
    # The call operator around it is one more.
    if on_one_line != statements + 1:
        yield block, f"$FollowUp has {statements} statements, and {on_one_line - 1} on one line: a semicolon is missing"
    length = len(r'"C:\Windows\System32\WindowsPowerShell\v1.0\powershell.exe" -NoProfile -NonInteractive -Command ""') + len(command)
    if length > MAX_SHELL_COMMAND:
        yield block, f"the follow-up's command line has {length} characters, the shell takes {MAX_SHELL_COMMAND}"


def all_problems(source):
    """Everything that is wrong with a script, as `line: problem`."""
    root = parse(source)
    found = [*syntax_problems(root)]
    if not found:
        for check in (newer_syntax, command_problems, line_problems, follow_up_problems):
            found += check(root)
        found += contract_problems(root, source)
    if not source.isascii():
        found.append((root, "not plain ASCII, which Windows PowerShell would read by the host's code page"))
    return [f"line {node.start_point[0] + 1}: {problem}" for node, problem in found]


def planted(source):
    """Mistakes, each with a word that its problem has to hold, and the script with that mistake."""

    def replaced(old, new):
        return source.replace(old, new, 1)

    end = b"try { $null = Invoke-Restart }"
    return [
        ("a missing brace", "", replaced(b"function Exit-Lock {", b"function Exit-Lock ")),
        ("a missing parenthesis", "", replaced(b"-lt $PatienceEnd)", b"-lt $PatienceEnd")),
        ("a missing quote", "", replaced(b"'agent-down'", b"'agent-down")),
        ("an if without its block", "", replaced(end, b"if ($Touched)\n" + end)),
        ("a catch without try", "", replaced(end, b"catch { return }\n" + end)),
        ("a killed process", "Stop-Process", replaced(end, b"Stop-Process -Id $Old.ProcessId -Force\n" + end)),
        ("a killed process, by its method", ".Kill", replaced(b"  $process.ExitCode\n", b"  $process.Kill()\n")),
        ("taskkill", "taskkill", replaced(end, b"taskkill /F /IM codedeploy-agent.exe\n" + end)),
        ("the service cmdlet", "Restart-Service", replaced(end, b"Restart-Service -Name codedeployagent\n" + end)),
        ("the reboot code", "exit 3010", replaced(b"exit $Code", b"exit 3010")),
        ("another end", "only Complete-Run", replaced(b"exit $Code", b"exit 1")),
        ("the error stream", "Write-Error", replaced(end, b"Write-Error 'no'\n" + end)),
        ("the error stream, by its method", "only the one line", replaced(end, b"[Console]::Error.WriteLine('no')\n" + end)),
        ("a second line", "only the one line", replaced(end, b"[Console]::Out.WriteLine('more')\n" + end)),
        ("an alias", "sleep", replaced(b"Start-Sleep -Seconds 1", b"sleep 1")),
        ("an alias of one letter", "%", replaced(b"ForEach-Object {", b"% {")),
        ("an alias of one letter for a filter", "?", replaced(b"Where-Object {", b"? {")),
        ("a mistyped function", "Get-Agnet", replaced(b"$agent = Get-Agent\n", b"$agent = Get-Agnet\n")),
        ("a mistyped parameter", "Secnods", replaced(b"Start-Sleep -Seconds 1", b"Start-Sleep -Secnods 1")),
        ("a newer operator", "5.1", replaced(end, b"$Version = $Version ?? 'none'\n" + end)),
        ("a newer chain", "5.1", replaced(end, b"Read-Installation && Exit-Lock\n" + end)),
        ("a newer condition", "5.1", replaced(end, b"$Version = $Touched ? 1 : 2\n" + end)),
        ("a function that nobody calls", "never called", replaced(end, b"function Get-Nothing { $null }\n" + end)),
        ("a code that does not fit its word", "does not understand", replaced(b"Complete-Run 21 'update-running'", b"Complete-Run 22 'update-running'")),
        ("an end that is gone", "never ends", replaced(b"Complete-Run 11 'not-root'", b"Complete-Run 12 'preflight-failed'")),
        ("a member of the line that is gone", "the members", replaced(b',"seconds":', b",")),
        ("double quotes in the follow-up", "double quotes", replaced(b"if ($service.State -eq 'Stopped')", b'if ($service.State -eq "Stopped")')),
        ("a comment in the follow-up", "comment", replaced(b"  $stopped = 0;", b"  $stopped = 0; # none yet")),
        ("a missing semicolon in the follow-up", "$FollowUp", replaced(b"  $stopped = 0;", b"  $stopped = 0")),
        ("a follow-up that is too long", "2048", replaced(b"  $stopped = 0;", b"  $stopped = 0;" + b" $stopped = 0;" * 100)),
        ("a letter outside ASCII", "ASCII", replaced(b"# What runs", "# What’s".encode())),
    ]


def main():
    """Checks the script, and if asked to, that the check can fail."""
    wishes = sys.argv[1:]
    if wishes not in ([], ["--planted"]):
        sys.exit(__doc__)
    source = SCRIPT.read_bytes()
    problems = all_problems(source)
    print(f"PowerShell: {SCRIPT.name} {'has problems' if problems else 'parses; it was not run'}")
    if wishes and not problems:
        mistakes = planted(source)
        for name, word, wrong in mistakes:
            found = all_problems(wrong)
            if wrong == source:
                problems.append(f"not planted, its place is gone: {name}")
            elif not any(word in problem for problem in found):
                problems.append(f"planted and not found as {word!r}: {name}; found {found}")
        print(f"PowerShell: {len(mistakes) - len(problems)} of {len(mistakes)} planted mistakes found")
    for problem in problems:
        print(f"{SCRIPT.name}: {problem}", file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
