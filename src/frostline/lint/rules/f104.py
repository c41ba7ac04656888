"""F104: a generator of requires_grad_ calls was never consumed: nothing is frozen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.scopes import Function
from frostline.lint.statements import begins_its_line, ends_its_line
from frostline.lint.thrown_away import names_in, scope_of, thrown_away

_FLAGS = frozenset({"requires_grad", "requires_grad_"})


@dataclass(frozen=True)
class _Lazy:
    """Something that would set flags if somebody went through it.

    Attributes:
        kind: what it is, in a word.
        node: the expression.
        target: what is called what it goes over.
        over: what it goes over.
        tests: what is left out.
        body: what would be done with each.
    """

    kind: str
    node: ast.expr
    target: ast.AST | None = None
    over: ast.expr | None = None
    tests: tuple[ast.expr, ...] = ()
    body: ast.expr | None = None


def check(view: FileView) -> Iterator[Violation]:
    """Generator expressions, `map` objects and calls of generators that would set flags, and that nobody consumes."""
    for statement in thrown_away(view):
        lazy = _lazy(view, statement.value)
        if lazy is not None:
            yield _violation(view, statement, lazy, "")
    for statement in view.nodes(ast.Assign):
        if len(statement.targets) != 1 or not isinstance(statement.targets[0], ast.Name):
            continue
        lazy = _lazy(view, statement.value)
        name = statement.targets[0].id
        if lazy is not None and all(each is statement.targets[0] for each in names_in(view.walk.tree, name)):
            yield _violation(view, statement, lazy, name)


def _lazy(view: FileView, node: ast.expr) -> _Lazy | None:
    if isinstance(node, ast.GeneratorExp):
        if not _sets_flags(view, node.elt):
            return None
        one = node.generators[0] if len(node.generators) == 1 and not node.generators[0].is_async else None
        if one is None:
            return _Lazy("a generator", node)
        return _Lazy("a generator", node, one.target, one.iter, tuple(one.ifs), node.elt)
    if not isinstance(node, ast.Call):
        return None
    if view.name(node.func) == "builtins.map" and len(node.args) >= 2:
        function = node.args[0]
        if isinstance(function, ast.Lambda):
            if not _sets_flags(view, function.body):
                return None
            plain = len(node.args) == 2 and len(function.args.args) == 1 and not function.args.defaults
            target = function.args.args[0] if plain else None
            return _Lazy("a map object", node, target, node.args[1], (), function.body)
        found = _function(view, function)
        sets = found is not None and _sets_flags(view, found.node)
        return _Lazy("a map object", node) if sets else None
    found = _function(view, node.func)
    if found is not None and _is_generator(found) and _sets_flags(view, found.node):
        return _Lazy("a generator", node)
    return None


def _sets_flags(view: FileView, node: ast.AST) -> bool:
    """Whether somewhere in it a flag is set."""
    for each in ast.walk(node):
        if isinstance(each, ast.Call):
            if isinstance(each.func, ast.Attribute) and each.func.attr == "requires_grad_":
                return True
            names = {arg.value for arg in each.args if isinstance(arg, ast.Constant)}
            if names & _FLAGS and view.text(each.func).rpartition(".")[2] in {"setattr", "__setattr__"}:
                return True
        elif isinstance(each, ast.Attribute) and each.attr in _FLAGS and isinstance(each.ctx, ast.Store):
            return True
    return False


def _function(view: FileView, node: ast.expr) -> Function | None:
    name = view.name(node)
    found = view.walk.find(name) if name else None
    return found[1] if found is not None and isinstance(found[1], Function) else None


def _is_generator(function: Function) -> bool:
    """Whether calling it does nothing yet."""
    stack: list[ast.AST] = [*function.node.body]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return not function.node.decorator_list
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            stack += ast.iter_child_nodes(node)
    return False


def _violation(view: FileView, statement: ast.stmt, lazy: _Lazy, name: str) -> Violation:
    loop = _loop(view, statement, lazy)
    edits = (view.replaced(statement, loop),) if loop else ()
    safe = edits and not _names_clash(view, lazy)
    return Violation(
        lazy.node,
        f"{lazy.kind} of requires_grad_ calls is never consumed: no flag is set",
        evidence=(f"{name} is read nowhere in the file",) if name else (),
        remedy=loop if loop else "a for loop over the parameters",
        edits=edits,
        severity=Severity.ERROR,
        safety=Safety.MANUAL if not edits else Safety.SAFE if safe else Safety.UNSAFE,
        title="Write a loop",
    )


def _loop(view: FileView, statement: ast.stmt, lazy: _Lazy) -> str:
    """The same as a loop; "" where that takes more than putting text in other places."""
    if lazy.target is None or lazy.over is None or lazy.body is None or "#" in view.text(statement):
        return ""
    parts = (lazy.over, lazy.body, *lazy.tests)
    if any(each.lineno != each.end_lineno for each in parts):
        return ""
    if not begins_its_line(view, statement) or not ends_its_line(view, statement):
        return ""
    indent = view.source.indent_of(statement.lineno)
    step = "\t" if indent.startswith("\t") else "    "
    lines = [f"for {view.text(lazy.target)} in {view.text(lazy.over)}:"]
    for depth, test in enumerate(lazy.tests, start=1):
        lines.append(f"{indent}{step * depth}if {view.text(test)}:")
    lines.append(f"{indent}{step * (len(lazy.tests) + 1)}{view.text(lazy.body)}")
    return view.source.newline.join(lines)


def _names_clash(view: FileView, lazy: _Lazy) -> bool:
    """Whether what the loop binds, and a generator keeps to itself, means something else around it."""
    assert lazy.target is not None
    names = {each.id for each in ast.walk(lazy.target) if isinstance(each, ast.Name)}
    names |= {each.arg for each in ast.walk(lazy.target) if isinstance(each, ast.arg)}
    scope = scope_of(view, lazy.node)
    inside = {id(each) for each in ast.walk(lazy.node)}
    return any(id(each) not in inside for name in names for each in names_in(scope, name))


RULE = LintRule(
    code="F104",
    what="Looks for generator expressions, `map` objects and calls of generator functions that would set "
    "`requires_grad`, as statements of their own or under a name that nothing reads.",
    why="A generator does nothing until something goes through it. The line runs, nothing is frozen, and the part "
    "trains on.",
    example="(p.requires_grad_(False) for p in model.backbone.parameters())",
    instead="for p in model.backbone.parameters():\n    p.requires_grad_(False)",
    remedy="Write a loop, or freeze the part with `frostline.freeze`.",
    safety=Safety.SAFE,
    how_safe="safe: the loop does what the line says; unsafe where the loop's name means something else nearby; none "
    "where a function is mapped, or where more than a line would have to move",
    false_alarms="A name of a module that another file imports and goes through. Silence it with `# noqa: F104`.",
    source="none found",
    triggers=("requires_grad",),
    check=check,
)
