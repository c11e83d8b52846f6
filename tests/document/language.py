"""The rules that any script for Windows PowerShell has to keep: what it would refuse only while it runs, or pass over in silence.

Each rule is a function that gives the places and what is wrong with them; its comment says why. The lists name what this script uses, so that anything else is looked at
before it is used.
"""

import re

import flow
import powershell

# The cmdlets of Windows PowerShell 4 that the script may use: the parameters it may name, and how many arguments it may give without a name. Everything else that is
# called has to be a function of the script. So aliases, mistyped names and every cmdlet that ends processes or writes to another stream are refused, without a list of
# what is bad.
CMDLETS = {
    "ForEach-Object": (set(), 1),
    "Get-CimInstance": ({"ClassName", "Filter", "Property", "OperationTimeoutSec"}, 0),
    "Get-Service": ({"Name", "ErrorAction"}, 0),
    "Join-Path": ({"Path", "ChildPath"}, 0),
    "New-Object": ({"TypeName", "ArgumentList"}, 0),
    "Select-Object": ({"Last"}, 0),
    "Set-StrictMode": ({"Version"}, 0),
    "Start-Process": ({"FilePath", "ArgumentList", "WindowStyle"}, 0),
    "Start-Sleep": ({"Seconds", "Milliseconds"}, 0),
    "Test-Path": ({"Path"}, 0),
    "Where-Object": (set(), 1),
}
# The script's own parameters, which it reads at its top.
GIVEN = {"TRIGGERED_AT", "SENT_AT", "BUSY_WAIT_SECONDS", "MIN_MEMORY_MIB"}

# Syntax that the parser knows and Windows PowerShell 4 does not.
NEWER_NODES = {"ternary_expression", "null_coalesce_expression", "null_coalescing_expression", "pipeline_chain_tail"}
NEWER_NODES |= {"class_statement", "enum_statement", "using_statement"}
NEWER_TOKENS = {"??", "??=", "?.", "?[", "&&", "||", "?", ":?"}
# Variables that are always there.
ALWAYS = {"true", "false", "null", "pid", "pshome", "pscommandpath"}
# What has a value where the parser cannot see it, by function and name: a mutex is abandoned only where it could be opened.
SURE = {("Test-MutexHeld", "mutex")}
# PowerShell reads these itself.
PREFERENCES = {"progresspreference", "warningpreference", "erroractionpreference"}
MATCHES = {"-match", "-cmatch", "-notmatch", "-cnotmatch"}

# Members of .NET's objects; all others that are asked for have to be a hashtable's of the script, or a property that a question to the management service names. A method
# without its parentheses would give itself, and no error.
METHODS = set(
    """AddDays AddSeconds Close ContainsKey CreateSubKey Dispose GetBaseException GetValue IsAmbiguousTime IsInRole OpenSubKey ReadToEnd ReleaseMutex Replace Seek Set SetValue
    Substring ToFileTimeUtc ToLocalTime ToUniversalTime Trim TrimStart WaitForExit WaitOne WriteLine""".split()
)
PROPERTIES = set(
    """Arguments Count CreateNoWindow Exception ExitCode FileName Handle HasExited InvocationInfo Keys Length LocalMachine Message Out RedirectStandardError
    RedirectStandardOutput ScriptLineNumber Status TotalSeconds UseShellExecute Year""".split()
)
# .NET's types, of Framework 4 and in Windows' own spelling, each with its static members; methods with parentheses. No run on a simulated Windows reaches most of them.
TYPES = {
    "Console": {"Out"},
    "DateTime": {"MaxValue", "MinValue", "TryParseExact()", "UtcNow"},
    "Environment": {"ExpandEnvironmentVariables()", "GetFolderPath()"},
    "Math": {"Abs()", "Floor()", "Max()", "Min()"},
    "Microsoft.Win32.Registry": {"LocalMachine"},
    "Microsoft.Win32.RegistryKeyPermissionCheck": {"Default"},
    "Microsoft.Win32.RegistryOptions": {"Volatile"},
    "System.ArgumentException": set(),
    "System.Diagnostics.Process": {"GetProcessById()", "Start()"},
    "System.Diagnostics.ProcessStartInfo": set(),
    "System.Diagnostics.Stopwatch": {"Frequency", "GetTimestamp()"},
    "System.IO.Directory": {"GetFiles()"},
    "System.IO.DirectoryNotFoundException": set(),
    "System.IO.File": {"Exists()", "GetLastWriteTimeUtc()", "ReadAllLines()", "ReadAllText()"},
    "System.IO.FileNotFoundException": set(),
    "System.IO.FileStream": set(),
    "System.IO.Path": {"Combine()", "GetFileName()", "IsPathRooted()"},
    "System.IO.SearchOption": {"AllDirectories"},
    "System.IO.SeekOrigin": {"End"},
    "System.IO.StreamReader": set(),
    "System.Security.Principal.WindowsBuiltInRole": {"Administrator"},
    "System.Security.Principal.WindowsIdentity": {"GetCurrent()"},
    "System.Security.Principal.WindowsPrincipal": set(),
    "System.Threading.AbandonedMutexException": set(),
    "System.Threading.EventWaitHandle": {"OpenExisting()"},
    "System.Threading.Mutex": {"OpenExisting()"},
    "System.Threading.WaitHandleCannotBeOpenedException": set(),
    "System.UnauthorizedAccessException": set(),
    "TimeZoneInfo": {"Local"},
    "Globalization.CultureInfo": {"InvariantCulture"},
    "double": set(),
    "int": set(),
    "long": set(),
    "ref": set(),
    "string": set(),
}
# Those of them that only a text has, and that give a text.
TEXT_METHODS = {"Replace", "Substring", "Trim", "TrimStart", "TrimEnd", "ToString"}
# Cmdlets and methods that give nothing, so that nothing of them can get into what a function gives; and where a value stays that is not assigned.
NESTED = {"script_block_expression", "sub_expression", "array_expression"}
SILENT_CMDLETS = {"Set-StrictMode", "Start-Process", "Start-Sleep"}
SILENT_METHODS = {"Close", "Dispose", "ReleaseMutex", "SetValue", "WriteLine"}


# ---- what the rules ask ---------------------------------------------------------------------------------------------------------------------------------------


def at(script, function):
    """How a problem names where it is: the function, or the script's top."""
    return function.name if function else "the top"


def handed_blocks(script):
    """Each script block that is handed to a function of the script, which calls it in a scope below its own: the call, and the block."""
    for call in script.calls:
        if call.name in script.functions:
            for argument in call.arguments + list(call.named.values()):
                if argument.unwrapped().kind == "script_block_expression":
                    yield call, argument.unwrapped()


# ---- syntax ---------------------------------------------------------------------------------------------------------------------------------------------------


def syntax_problems(script):
    """Places that are no PowerShell."""
    for node in script.broken:
        yield node, f"{node.kind} {node.broken}: {node.text[:80]!r}"
    if not script.source.isascii():
        yield script.root, "not plain ASCII, which Windows PowerShell would read by the host's code page"


def newer_syntax(script):
    """Places that only newer versions of PowerShell understand."""
    for node in script.nodes:
        if node.kind in NEWER_NODES or (not node.named and node.kind in NEWER_TOKENS):
            yield node, f"{node.kind} is not known to Windows PowerShell 4"
        if node.kind == "member_name" and node.text.lower() == "new" and is_static(node.parent):
            yield node, "::new is not known to Windows PowerShell 4"


def text_problems(script):
    """Texts in which a variable is not what it looks like: `"$a.Name"` holds all of $a, and `"$a: "` is an error that this parser does not see."""
    known = known_members(script)
    for text in script.of("expandable_string_literal"):
        for variable in (child for child in text.children if child.kind == "variable"):
            rest = text.source[variable.end : text.end].decode()
            member = re.match(r"\.(\w+)", rest)
            braced = variable.text.startswith("${")
            if not braced and (rest.startswith(("[", "::")) or re.match(r":(?![\w:])", rest) or member and member.group(1) in known | PROPERTIES):
                yield variable, f"{variable.text + rest[:12]!r} in a text: only the variable itself is put there; $( ) or ${{ }} is missing"


def comparison_problems(script):
    """`$list -eq $null` picks from a list instead of asking whether there is one."""
    for node in script.of("comparison_expression"):
        operator = node.child("comparison_operator")
        if operator is not None and re.fullmatch(r"-[ci]?(eq|ne)", operator.text) and node.children[-1].unwrapped().text.lower() == "$null":
            yield node, f"{node.text!r}: $null belongs on the left side"


def precedence_problems(script):
    """`-and` and `-or` bind alike in PowerShell, from left to right: `$a -or $b -and $c` asks for $c even where $a is true."""
    for node in script.of("logical_expression"):
        operators = {child.text.lower() for child in node.children if not child.named}
        inner = [child for child in node.children if child.kind == "logical_expression"]
        if len(operators | {child.text.lower() for each in inner for child in each.children if not child.named}) > 1:
            yield node, f"{node.text[:80]!r}: -and and -or side by side, which needs parentheses"


# ---- commands -------------------------------------------------------------------------------------------------------------------------------------------------


def command_problems(script):
    """Calls of something else than the script's functions and the listed cmdlets, or with parameters that these have not."""
    for call in script.calls:
        if call.name is None:
            yield from computed_command_problems(script, call)
        elif call.name in CMDLETS:
            parameters, most = CMDLETS[call.name]
            for parameter in sorted(set(call.named) - parameters):
                yield call.node, f"{call.name} is not known here to have a parameter {parameter}"
            if len(call.arguments) > most:
                yield call.node, f"{call.name} with {len(call.arguments)} arguments without a name: {call.node.text[:80]!r}"
        elif call.name not in script.functions:
            yield call.node, f"{call.name} is neither a function of this script nor a listed cmdlet"


def computed_command_problems(script, call):
    """The only command that is computed: a parameter, where every caller hands over a script block."""
    text = call.node.text
    given = text.removeprefix("& $")
    if call.home is None or not text.startswith("& $") or given not in call.home.parameters:
        yield call.node, f"a command that is computed: {text[:80]!r}"
        return
    place = call.home.parameters.index(given)
    for caller in script.calls:
        if caller.name == call.home.name and (len(caller.arguments) <= place or caller.arguments[place].unwrapped().kind != "script_block_expression"):
            yield caller.node, f"{caller.name} calls its {given}, which is no script block here"


def argument_problems(script):
    """What a function is given: PowerShell passes over an argument too many, and puts $null in the place of a missing one. `F($a, $b)` and `F $a, $b` give one, a list."""
    for call in script.calls:
        if call.name not in script.functions:
            continue
        function = script.functions[call.name]
        for parameter in sorted(set(call.named) - set(function.parameters)):
            yield call.node, f"{call.name} has no parameter {parameter}"
        count = len(call.arguments) + len(call.named)
        if not function.required <= count <= len(function.parameters):
            yield call.node, f"{call.name} has {len(function.parameters)} parameters, and is given {count} arguments: {call.node.text[:80]!r}"
        for argument in call.arguments:
            if argument.kind == "generic_token":
                yield argument, f"{call.name} is given the bare word {argument.text}"


def unused_functions(script):
    """Functions that nobody calls, or only they themselves."""
    for name, function in script.functions.items():
        if not any(call.name == name and call.home is not function for call in script.calls):
            yield function.node, f"the function {name} is never called"


def cim_problems(script):
    """A question to the management service has an end, and names what it wants: the rest costs it seconds on a busy host."""
    for call in script.calls:
        if call.name == "Get-CimInstance":
            for parameter in sorted({"Property", "OperationTimeoutSec"} - set(call.named)):
                yield call.node, f"Get-CimInstance without -{parameter}"


# ---- variables and members ----------------------------------------------------------------------------------------------------------------------------------------


def unassigned_variables(script):
    """Variables that nobody has given a value, which ends a script in strict mode. A caller's would be found too, and must not be: so each has to be assigned before in
    the same function, or belong to the whole script."""
    everywhere = script.state
    missing = {node for way in flow.ways(script).values() for node in way.missing}
    for read in script.reads:
        node, key = read.node, read.key
        if read.scope not in ("", "script", "env") or (read.scope == "env" and read.name not in GIVEN):
            yield node, f"{node.text}: not one of the script's"
        elif read.scope == "env" or key in ALWAYS:
            continue
        elif key == "_":
            if not any(above.kind in ("catch_clause", "script_block_expression") for above in node.above()):
                yield node, "$_ outside a catch and a script block"
        elif key == "args":
            if read.home is not None:
                yield node, "$args in a function, where it is not the script's"
        elif key == "matches":
            if not any(each.text.lower() in MATCHES and each.start < node.start and script.home(each) is read.home for each in script.of("comparison_operator")):
                yield node, f"$Matches, and nothing was matched before: {at(script, read.home)}"
        elif read.home is None:
            if not any(each.home is None and each.key == key and each.since <= node.start for each in script.assignments):
                yield node, f"{node.text} is not assigned before at the top"
        elif read.scope == "script" or key not in script.locals[read.home]:
            if key not in everywhere:
                yield node, f"{node.text} is not assigned, neither in {read.home.name} nor as the script's"
        elif node in missing and (read.home.name, key) not in SURE:
            yield node, f"{node.text} is not assigned on every way before in {read.home.name}"


def hidden_state(script):
    """A function that assigns a name of the whole script's without `$script:` makes one of its own. And whatever it calls sees that one, too, instead of the script's."""
    everywhere = script.state
    spelled = {each.name for each in script.assignments if each.script or each.home is None}
    readers = {}
    for read in script.reads:
        if read.home is not None and read.scope != "script" and read.key not in script.locals[read.home]:
            readers.setdefault(read.key, set()).add(read.home.name)
    for each in script.assignments:
        if each.home is None or each.script or each.key not in everywhere:
            continue
        if each.name in spelled and each.node.parent.kind != "script_parameter":
            yield each.node, f"${each.name} is assigned in {each.home.name} without $script:, and so is another one than the script's"
        for reader in sorted(readers.get(each.key, set()) & script.reached[each.home.name]):
            yield each.node, f"${each.name} of {each.home.name} hides the script's from {reader}, which it calls"


def unread_variables(script):
    """Variables that nobody asks for: most often a mistyped name."""
    asked = {(None if read.scope == "script" else read.home, read.key) for read in script.reads}
    anywhere = {read.key for read in script.reads}
    for each in script.assignments:
        whole = each.script or each.home is None
        known = each.key in anywhere if whole else (each.home, each.key) in asked
        if not known and each.key not in PREFERENCES | {"null"}:
            yield each.node, f"${each.name} is assigned, and never read: {at(script, each.home)}"


def block_problems(script):
    """A script block that is handed to a function runs below that function: of the same names it would see that one's, and what it assigns is lost."""
    for call, block in handed_blocks(script):
        hidden = script.locals[script.functions[call.name]]
        for variable in block.below("variable"):
            if powershell.name_of(variable)[1].lower() in hidden - {"_"}:
                yield variable, f"{variable.text} in a script block for {call.name}, which has one of that name itself"
        inside = {each.key for each in script.assignments if block.start < each.node.start < block.end and not each.script}
        for read in script.reads:
            if read.home is call.home and read.key in inside and not block.start < read.node.start < block.end:
                yield read.node, f"{read.node.text} is not what the script block for {call.name} assigns, which is lost with it"


def known_members(script):
    """The members of hashtables and of what a question to the management service gives."""
    keys = {key.unwrapped().text for key in script.of("key_expression")}
    properties = {text.text[1:-1] for call in script.calls if "Property" in call.named for text in call.named["Property"].below("string_literal")}
    return keys | properties


def member_problems(script):
    """Members that nothing has. In strict mode they end the script; and what a question to the management service did not ask for is silently empty."""
    known = known_members(script)
    for name in script.of("member_name"):
        is_called = name.parent.kind == "invocation_expression"
        if not is_static(name.parent) and name.text not in (METHODS if is_called else known | PROPERTIES):
            yield name, f".{name.text}{'()' * is_called}: no hashtable of the script has it, no question asks for it, and it is not listed"


def is_static(node):
    """Whether a member is asked of a type."""
    return "::" in [child.kind for child in node.children]


def type_problems(script):
    """Types and static members that are mistyped, or that nobody has looked up."""
    for literal in script.of("type_literal"):
        name = literal.text[1:-1]
        if name not in TYPES:
            yield literal, f"{literal.text} is not a type that is listed"
        elif is_static(literal.parent):
            member = literal.parent.child("member_name").text + "()" * (literal.parent.kind == "invocation_expression")
            if member not in TYPES[name]:
                yield literal, f"{literal.text}::{member} is not listed"
    for call in script.calls:
        if call.name == "New-Object" and call.named.get("TypeName", call.node).text not in TYPES:
            yield call.node, f"{call.node.text[:80]!r}: not a type that is listed"


def count_problems(script):
    """`.Count` and `.Length` of what may be a single thing, or nothing: there is none in strict mode. So it has to be a list by the way it is made, or a text."""
    for node in script.of("member_access"):
        name = node.child("member_name").text
        subject = node.children[0]
        if name == "Count" and not is_list(script, subject):
            yield node, f"{node.text}: it may be a single thing or nothing"
        if name == "Length" and not is_text(script, subject):
            yield node, f"{node.text}: not known to be a text"


def values_of(script, variable):
    """Everything that a variable is given where it stands, as nodes with the place: its own assignments, or what callers give, or the whole script's; None for a value
    that is computed."""
    home = script.home(variable)
    scope, name = powershell.name_of(variable)
    if scope != "script" and home is not None and name.lower() in script.locals[home]:
        own = [each for each in script.assignments if each.home is home and not each.script and each.key == name.lower()]
        lowered = [parameter.lower() for parameter in home.parameters]
        if name.lower() in lowered:
            place = lowered.index(name.lower())
            given = [call.arguments[place] if place < len(call.arguments) else None for call in script.calls if call.name == home.name]
            own = [each for each in own if each.node.parent.kind != "script_parameter"]
            return given + [each.value for each in own if not each.adds]
        return [each.value for each in own if not each.adds]
    return [each.value for each in script.assignments if (each.script or each.home is None) and each.key == name.lower() and not each.adds]


def is_list(script, node, seen=()):
    """Whether it is a list however many it holds: `@( )`, `a, b`, what `-split` gives; or a variable, parameter or member that never gets anything else."""
    node = node.unwrapped()
    if node.kind in ("array_expression", "array_literal_expression"):
        return True
    if node.kind == "comparison_expression":
        return node.child("comparison_operator").text.lower().endswith("split")
    place = (script.home(node), node.text)
    if node.kind == "variable" and place not in seen:
        values = values_of(script, node)
        return bool(values) and all(value is not None and is_list(script, value, (*seen, place)) for value in values)
    if node.kind == "member_access" and place not in seen:
        values = member_values(script, node.child("member_name").text)
        return bool(values) and all(is_list(script, value, (*seen, place)) for value in values)
    return False


def member_values(script, name):
    """Everything that a member of this name is given, in hashtables and later; what is added to it is none of that."""
    values = [entry.children[2] for entry in script.of("hash_entry") if entry.child("key_expression").unwrapped().text == name]
    for node in script.of("assignment_expression"):
        target = node.child("left_assignment_expression").unwrapped()
        if target.kind == "member_access" and target.child("member_name").text == name and node.child("assignment_operator").text == "=":
            values.append(node.children[-1])
    return values


def is_text(script, node):
    """Whether it is a text (or a stream, which has a length as well): a method of texts gives it, or is called on it in the same statement; a line of a file; or a
    variable that never gets anything else."""
    node = node.unwrapped()
    if node.kind == "string_literal":
        return True
    if node.kind == "invocation_expression":
        access = node.child("member_access") or node
        return access.child("member_name").text in TEXT_METHODS
    if node.kind == "command":
        return node.text.startswith("New-Object -TypeName System.IO.FileStream")
    if node.kind != "variable":
        return False
    statement = next((above for above in node.above() if above.kind == "pipeline" and above.parent.kind == "statement_list"), node)
    for call in statement.below("invocation_expression"):
        if call.children[0].text == node.text and call.child("member_name").text in TEXT_METHODS:
            return True
    loop = next((above for above in node.above() if above.kind == "foreach_statement" and above.child("variable").text == node.text), None)
    if loop is not None:
        return "::ReadAllLines(" in loop.child("pipeline").text
    values = values_of(script, node)
    return bool(values) and all(value is not None and is_text(script, value) for value in values)


def gives(script, function, seen=()):
    """Whether a function gives anything: it returns something, or leaves a value that is not assigned."""
    if function in seen:
        return False
    for statement in function.node.below("pipeline", "flow_control_statement"):
        if any(above.kind in NESTED for above in statement.above()):
            continue
        if statement.kind == "flow_control_statement":
            if statement.children[0].kind == "return" and len(statement.children) > 1:
                return True
        elif statement.parent.kind == "statement_list" and leaves(script, statement, (*seen, function)):
            return True
    return False


def leaves(script, statement, seen=()):
    """Whether a statement leaves a value in the output."""
    value = statement.unwrapped()
    if value.kind == "command":
        name = value.child("command_name")
        function = script.functions.get(name.text if name else "")
        return gives(script, function, seen) if function else name is None or name.text not in SILENT_CMDLETS
    if value.kind == "invocation_expression":
        return value.child("member_name").text not in SILENT_METHODS
    return value.kind not in ("assignment_expression", "post_increment_expression", "post_decrement_expression")


def stray_output(script):
    """What a function gives is all that its statements leave. One that leaves a value and is not the last of its block does so by mistake, if it does anything else than
    to compute it: a call that was made for its effect."""
    for statement in script.of("pipeline"):
        block = statement.parent
        if block.kind != "statement_list" or block.parent.kind in NESTED or not leaves(script, statement):
            continue
        last = [child for child in block.children if child.named and child.kind not in ("comment", "empty_statement")][-1] is statement
        if not last and not statement.unwrapped().text.startswith("[System.IO.Path]::"):
            yield statement, f"what {statement.text[:60]!r} gives stays in the output"


RULES = (
    newer_syntax,
    text_problems,
    comparison_problems,
    precedence_problems,
    command_problems,
    argument_problems,
    unused_functions,
    cim_problems,
    unassigned_variables,
    hidden_state,
    unread_variables,
    block_problems,
    member_problems,
    type_problems,
    count_problems,
    stray_output,
)
