"""Filters by name over the parameters of a model, found in the source that ran, and what each of them matched."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.audit.events import GradFlag
from frostline.audit.places import Place
from frostline.audit.seen import ModelSeen, Seen, TensorSeen
from frostline.doctor.source_lines import Statement, everything, sets_flag, walked_at

_WALKS_WITH_NAMES = frozenset({"named_parameters", "named_modules", "named_children"})


@dataclass(frozen=True)
class Filter:
    """One condition on the name, in a loop, that decides which flags are written.

    Attributes:
        model: the model.
        test: the condition, as text.
        always: why it can only be true, for example ``'bn'``; empty if it can be false.
        literal: it names what it looks for: strings in it, or in a list that it goes through.
        value: what the flag is set to where it holds.
        walked: the parameters that were walked over.
        matched: those of them whose flag was written, or written to ``value`` where every flag is.
        place: the line of the condition.
    """

    model: ModelSeen
    test: str
    always: str
    literal: bool
    value: bool
    walked: list[TensorSeen]
    matched: list[TensorSeen]
    place: Place


def name_filters(seen: Seen) -> Iterator[Filter]:
    """The filters by name in the source that ran."""
    statements = everything(seen)
    for statement in statements:
        told = _condition(statement)
        if told is None:
            continue
        loop, test, value = told
        parts = walked_at(loop.iter, statement.file, seen)
        for model in {id(model): model for model, _ in parts}.values():
            walked = {
                t.path: t for of, path in parts if of is model for t in model.below(path) if t.kind == "parameter"
            }
            wrote = {
                e.path
                for e in seen.of(GradFlag, lambda e, m=model, v=value: e.model == m.name and e.value is v)
                if statement.covers(e.place)
            }
            yield Filter(
                model=model,
                test=ast.unparse(test),
                always=_always(test),
                literal=_names_something(test, statement, statements),
                value=value,
                walked=list(walked.values()),
                matched=[t for t in walked.values() if wrote.intersection({t.path, *t.aliases})],
                place=statement.place_of(test),
            )


def _condition(statement: Statement) -> tuple[ast.For, ast.expr, bool] | None:
    """The loop over names, the condition on the name, and the value, of a statement that writes a flag."""
    for i, loop in reversed(list(enumerate(statement.around))):
        name = _name_of(loop)
        if not isinstance(loop, ast.For) or not name:
            continue
        value = sets_flag(statement.node)
        if value is None:
            inline = _inline(statement.node)
            return (loop, inline, True) if inline is not None and _mentions(inline, name) else None
        inner = statement.around[i + 1 :]
        for j, node in enumerate(inner):
            if isinstance(node, ast.If) and _mentions(node.test, name):
                after = inner[j + 1] if j + 1 < len(inner) else statement.node
                return (loop, node.test if after in node.body else _opposite(node.test), value)
        for node in loop.body:
            if node is statement.node or node in inner:
                break
            if isinstance(node, ast.If) and _mentions(node.test, name) and isinstance(node.body[-1], ast.Continue):
                return loop, _opposite(node.test), value
        return None
    return None


def _name_of(loop: ast.stmt) -> str:
    if not isinstance(loop, ast.For) or not isinstance(loop.target, ast.Tuple):
        return ""
    walks = {n.func.attr for n in ast.walk(loop.iter) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)}
    first = loop.target.elts[0]
    if isinstance(first, ast.Tuple) or not walks & _WALKS_WITH_NAMES:
        return ""
    # `for i, (name, p) in enumerate(...)` has the name one level down.
    second = loop.target.elts[1] if len(loop.target.elts) > 1 else None
    if isinstance(second, ast.Tuple) and second.elts:
        first = second.elts[0]
    return first.id if isinstance(first, ast.Name) else ""


def _inline(node: ast.stmt) -> ast.expr | None:
    """The condition of ``p.requires_grad = "head" in name``."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
        return node.value if node.targets[0].attr == "requires_grad" else None
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "requires_grad_":
        return call.args[0] if call.args else None
    return None


def _opposite(test: ast.expr) -> ast.expr:
    return (
        test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else ast.UnaryOp(ast.Not(), test)
    )


def _mentions(test: ast.AST, name: str) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(test))


def _always(test: ast.expr) -> str:
    """The part of ``'bn' or 'norm' in name`` that is always true, as text."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or):
        return next((ast.unparse(v) for v in test.values if isinstance(v, ast.Constant) and bool(v.value)), "")
    return ""


def _names_something(test: ast.expr, where: Statement, statements: list[Statement]) -> bool:
    """Whether it is known what it looks for: an empty list of names is a way to freeze nothing, and no mistake."""
    if any(isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value for n in ast.walk(test)):
        return True
    used = {n.id for n in ast.walk(test) if isinstance(n, ast.Name)}
    for statement in (s for s in statements if s.file == where.file and s.function in {where.function, "<module>"}):
        node = statement.node
        if not isinstance(node, ast.Assign) or not any(isinstance(t, ast.Name) and t.id in used for t in node.targets):
            continue
        if isinstance(node.value, (ast.List, ast.Tuple, ast.Set, ast.Constant)) and any(
            isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value for n in ast.walk(node.value)
        ):
            return True
    return False
