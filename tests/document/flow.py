"""Which of a function's own variables have a value on every way to the place where they are read, and which functions never come back.

In strict mode a variable that has none ends the script, and a caller's of the same name would be taken for it. Followed are `if`, loops, `try`, `return`, `throw`,
`break`, and calls of functions that always throw. A loop's body may not run at all, unless its condition is `$true`; a script block neither.
"""

import powershell


class Ways:
    """A walk through one function. What is known is the set of its variables that have a value; None where no way leads on."""

    def __init__(self, script, function, ending):
        self.own = script.locals[function]
        self.ending = ending
        self.returns = False
        self.loops = []
        self.missing = []
        parameters = frozenset(name.lower() for name in function.parameters)
        self.comes_back = self.visit(function.node.child("script_block"), parameters) is not None or self.returns

    def visit(self, node, known):
        """What is known after a node, if that is known before it."""
        if known is None or node is None:
            return known
        special = getattr(self, "visit_" + node.kind, None)
        return special(node, known) if special else self.visit_each(node.children, known)

    def visit_each(self, nodes, known):
        for node in nodes:
            known = self.visit(node, known)
        return known

    def visit_variable(self, node, known):
        scope, name = powershell.name_of(node)
        if not scope and name.lower() in self.own and name.lower() not in known:
            self.missing.append(node)
        return known

    def visit_assignment_expression(self, node, known):
        left = node.child("left_assignment_expression")
        given = list(powershell.targets(left))
        if not given or node.child("assignment_operator").text != "=":
            known = self.visit(left, known)
        known = self.visit(node.children[-1], known)
        return None if known is None else known | {powershell.name_of(variable)[1].lower() for variable in given}

    def visit_command(self, node, known):
        name = node.child("command_name")
        known = self.visit_each(node.children, known)
        return None if name is not None and name.text in self.ending else known

    def visit_script_block_expression(self, node, known):
        self.visit_each(node.children, known)
        return known

    def visit_flow_control_statement(self, node, known):
        self.visit_each(node.children, known)
        kind = node.children[0].kind
        self.returns |= kind == "return"
        if kind == "break":
            self.loops[-1].append(known)
        return None

    def visit_if_statement(self, node, known):
        further = node.child("elseif_clauses")
        clauses = [node, *(further.children if further else [])]
        after = []
        for clause in clauses:
            known = self.visit(clause.child("pipeline"), known)
            after.append(self.visit(clause.child("statement_block"), known))
        otherwise = node.child("else_clause")
        after.append(self.visit(otherwise.child("statement_block"), known) if otherwise else known)
        return merged(after)

    def loop(self, node, condition, known):
        """A loop that may never run, or, where its condition is `$true`, one that only a `break` ends."""
        endless = condition is None or condition.text == "$true"
        known = self.visit(condition, known)
        self.loops.append([])
        self.visit(node.child("for_iterator"), self.visit(node.child("statement_block"), known))
        return merged([*self.loops.pop(), *([] if endless else [known])])

    def visit_while_statement(self, node, known):
        return self.loop(node, node.child("while_condition"), known)

    def visit_for_statement(self, node, known):
        return self.loop(node, node.child("for_condition"), self.visit(node.child("for_initializer"), known))

    def visit_foreach_statement(self, node, known):
        before = self.visit(node.child("pipeline"), known)
        if before is None:
            return None
        self.loops.append([])
        self.visit(node.child("statement_block"), before | {powershell.name_of(node.child("variable"))[1].lower()})
        return merged([*self.loops.pop(), before])

    def visit_do_statement(self, node, known):
        self.loops.append([])
        known = self.visit(node.child("while_condition"), self.visit(node.child("statement_block"), known))
        return merged([*self.loops.pop(), known])

    def visit_try_statement(self, node, known):
        after = [self.visit(node.child("statement_block"), known)]
        for clause in (node.child("catch_clauses") or node).children:
            if clause.kind == "catch_clause":
                after.append(self.visit(clause.child("statement_block"), known))
        last = node.child("finally_clause")
        if last is not None:
            self.visit(last, known)
        return merged(after)


def merged(ways):
    """What is known where several ways meet."""
    open_ways = [known for known in ways if known is not None]
    return frozenset.intersection(*open_ways) if open_ways else None


def ways(script):
    """The walk through each function, by name."""
    ending = set()
    while True:
        found = {name: Ways(script, function, ending) for name, function in script.functions.items()}
        more = {name for name, way in found.items() if not way.comes_back}
        if more == ending:
            return found
        ending = more
