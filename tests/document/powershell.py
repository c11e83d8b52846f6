"""A PowerShell script as a tree with what the checks ask it: its functions, who calls whom and with what, which variables are assigned and read, and where.

The parser is tree-sitter's. Names are compared as they are written, but those of variables without regard to case, as PowerShell does.
"""

import dataclasses
import functools
import re

import tree_sitter
import tree_sitter_pwsh

# Nodes that only wrap a single other one.
WRAPPERS = {"assignment_value", "pipeline", "pipeline_chain", "unary_expression", "parenthesized_expression", "argument_expression"}
HEADING = re.compile(r"# ---- (.+?) -{3,}$")


class Node:
    """A node of the tree. Made once from the parser's, which makes its own anew at every look."""

    def __init__(self, parsed, parent, source):
        self.source = source
        self.kind = parsed.type
        self.named = parsed.is_named
        self.parent = parent
        self.start = parsed.start_byte
        self.end = parsed.end_byte
        self.line = parsed.start_point[0] + 1
        self.broken = "is missing" if parsed.is_missing else "syntax error" if parsed.is_error else ""
        self.children = [Node(child, self, source) for child in parsed.children]

    @functools.cached_property
    def text(self):
        """The part of the script that it stands for."""
        return self.source[self.start : self.end].decode("utf-8", errors="replace")

    def walk(self):
        """The node and everything below it, in the order of the text."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(reversed(node.children))

    def above(self):
        """What it stands in, from the inside out."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def child(self, *kinds):
        """The first child of one of these kinds, if there is any."""
        return next((child for child in self.children if child.kind in kinds), None)

    def below(self, *kinds):
        """Everything below it of these kinds."""
        return [node for node in self.walk() if node.kind in kinds]

    def unwrapped(self):
        """What is meant, without parentheses and nodes that only wrap it."""
        node = self
        while node.kind in WRAPPERS and len([child for child in node.children if child.named]) == 1:
            node = next(child for child in node.children if child.named)
        return node

    def literal(self):
        """The number or text that it is as it stands; None when it has to be computed."""
        node = self.unwrapped()
        if node.kind == "integer_literal" and node.text.isdigit():
            return int(node.text)
        if node.kind == "string_literal" and not node.below("variable", "sub_expression"):
            return node.text[1:-1]
        return None


@dataclasses.dataclass(eq=False)
class Function:
    """A function: its parameters' names and how many have no default, the comment right above it, and the heading under which it stands."""

    name: str
    node: Node
    parameters: list
    required: int
    comment: str
    heading: str


@dataclasses.dataclass(eq=False)
class Call:
    """A command: its name (None when it is computed), the function in which it stands (None at the top), its arguments by position and by name."""

    node: Node
    name: str
    home: Function
    arguments: list
    named: dict


@dataclasses.dataclass(eq=False)
class Assignment:
    """A variable that is given a value: its name as written, without scope; whether as `$script:`; the byte from which on it has it; the value, None when that is no
    single node; whether it is added to what was there."""

    node: Node
    name: str
    script: bool
    home: Function
    since: int
    value: Node
    adds: bool

    @property
    def key(self):
        return self.name.lower()


@dataclasses.dataclass(eq=False)
class Read:
    """A variable that is asked for its value."""

    node: Node
    name: str
    scope: str
    home: Function

    @property
    def key(self):
        return self.name.lower()


def name_of(variable):
    """The scope and the name of a variable, without sigil and braces."""
    text = variable.text.lstrip("$").strip("{}")
    scope, _, name = text.rpartition(":")
    return scope.lower(), name


def targets(assigned):
    """The variables that an assignment's left side gives a value, not those that it only changes inside (`$x.Y = `, `$x[1] = `)."""
    node = assigned.unwrapped()
    if node.kind in ("expression_with_unary_operator", "cast_expression", "left_assignment_expression", "array_literal_expression"):
        for child in node.children:
            yield from targets(child)
    elif node.kind == "variable":
        yield node


class Script:
    """A script with what is found in it."""

    def __init__(self, source):
        self.source = source
        language = tree_sitter.Language(tree_sitter_pwsh.language())
        self.root = Node(tree_sitter.Parser(language).parse(source).root_node, None, source)
        self.nodes = list(self.root.walk())
        self.broken = [node for node in self.nodes if node.broken]
        self.kinds = {}
        for node in self.nodes:
            self.kinds.setdefault(node.kind, []).append(node)
        self.headings = [(node.start, match.group(1)) for node in self.of("comment") if (match := HEADING.match(node.text))]
        self.functions = {function.name: function for function in map(self.function, self.of("function_statement"))}
        self.homes = {function.node: function for function in self.functions.values()}
        self.calls = [self.call(node) for node in self.of("command")]
        self.assignments = []
        self.reads = []
        self.find_variables()

    def of(self, *kinds):
        """All nodes of these kinds, in the order of the text."""
        found = [node for kind in kinds for node in self.kinds.get(kind, [])]
        return found if len(kinds) == 1 else sorted(found, key=lambda node: node.start)

    def home(self, node):
        """The function in which a node stands; a script block belongs to that in which it is written."""
        return next((self.homes[above] for above in node.above() if above in self.homes), None)

    def heading(self, node):
        """The last heading above a node."""
        return ([""] + [heading for start, heading in self.headings if start < node.start])[-1]

    def function(self, node):
        parameters = node.below("script_parameter")
        siblings = node.parent.children
        comment = []
        line = node.line
        for sibling in reversed(siblings[: siblings.index(node)]):
            if sibling.kind != "comment" or sibling.line != line - 1:
                break
            comment.insert(0, sibling.text.lstrip("# "))
            line = sibling.line
        names = [name_of(parameter.child("variable"))[1] for parameter in parameters]
        required = sum(parameter.child("script_parameter_default") is None for parameter in parameters)
        return Function(node.child("function_name").text, node, names, required, " ".join(comment), self.heading(node))

    def call(self, node):
        name = node.child("command_name")
        elements = node.child("command_elements")
        arguments, named, waiting = [], {}, None
        for element in elements.children if elements else []:
            if element.kind == "command_parameter":
                waiting = element.text.lstrip("-").rstrip(":")
                named[waiting] = element
            elif element.kind not in ("command_argument_sep", "redirection") and element.named:
                if waiting is None:
                    arguments.append(element)
                else:
                    named[waiting], waiting = element, None
        return Call(node, None if name is None else name.text, self.home(node), arguments, named)

    def find_variables(self):
        """Fills in the assignments and the reads."""
        assigned = set()

        def note(variable, since, value, adds):
            scope, name = name_of(variable)
            assigned.add(variable)
            self.assignments.append(Assignment(variable, name, scope == "script", self.home(variable), since, value, adds))

        for node in self.of("assignment_expression"):
            left = node.child("left_assignment_expression")
            operator = node.child("assignment_operator").text
            several = left.unwrapped().child("array_literal_expression") is not None
            for variable in targets(left):
                note(variable, node.end, None if several else node.children[-1], operator != "=")
                if operator != "=":
                    assigned.discard(variable)
        for node in self.of("foreach_statement"):
            note(node.child("variable"), node.child("variable").end, None, False)
        for node in self.of("post_increment_expression", "post_decrement_expression", "pre_increment_expression", "pre_decrement_expression"):
            variable = node.child("variable")
            if variable is not None:
                note(variable, node.end, None, True)
                assigned.discard(variable)
        for parameter in self.of("script_parameter"):
            note(parameter.child("variable"), parameter.end, None, False)
        for variable in self.of("variable"):
            if variable not in assigned:
                scope, name = name_of(variable)
                self.reads.append(Read(variable, name, scope, self.home(variable)))

    @functools.cached_property
    def state(self):
        """What belongs to the whole script: assigned at its top, or as `$script:` by a function. In small letters, as all that follows."""
        return {each.key for each in self.assignments if each.script or each.home is None} - {"null"}

    @functools.cached_property
    def locals(self):
        """Each function's own variables, its parameters among them."""
        found = {function: set() for function in self.functions.values()}
        for each in self.assignments:
            if each.home is not None and not each.script and each.key != "null":
                found[each.home].add(each.key)
        return found

    @functools.cached_property
    def calls_in(self):
        """The calls in each function, and under None those at the top."""
        found = {function: [] for function in (None, *self.functions.values())}
        for call in self.calls:
            found[call.home].append(call)
        return found

    @functools.cached_property
    def reached(self):
        """For each function by name, which functions it reaches through calls."""
        direct = {name: {call.name for call in self.calls_in[function]} & set(self.functions) for name, function in self.functions.items()}
        reached = {}
        for name in direct:
            found, pending = set(), list(direct[name])
            while pending:
                other = pending.pop()
                if other not in found:
                    found.add(other)
                    pending += direct[other]
            reached[name] = found
        return reached
