"""O414: the loss is computed from the input, not from the prediction."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation

_LOSS = re.compile(
    r"criterion|(^|_)loss(es)?(_?f(n|unc|unction)?)?$|^loss_|Loss(es)?$|cross_entropy|^(nll|bce|mse|ce)(_|$)", re.I
)
_FunctionNode = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
# What gives the same data at another place or in another type.
_MOVES = {"to", "cuda", "cpu", "float", "half", "double", "long", "contiguous", "detach", "bfloat16", "type"}


@dataclass(frozen=True)
class _Forward:
    """A model is given one name, and what it returns is given another one.

    Attributes:
        call: the call of the model.
        output: the name of the result; "" where it is thrown away.
        given: the name of the input.
    """

    call: ast.Call
    output: str
    given: str


def check(view: FileView) -> Iterator[Violation]:
    """Losses of a model's input, where nothing uses what the model returned."""
    for statement in view.nodes(ast.Assign, ast.Expr):
        forward = _forward(view, statement)
        if forward is None:
            continue
        body = _body(view, statement)
        loss = next((each for each in _losses(body) if _follows(each, statement)), None)
        if (
            loss is None
            or _may_call_the_model(view, loss.func)
            or not _takes(loss, forward.given)
            or _rebinds(body, forward.given, statement, loss)
        ):
            continue
        if forward.output and _is_used(body, forward.output):
            continue
        yield _violation(view, forward, loss)


def _forward(view: FileView, statement: ast.Assign | ast.Expr) -> _Forward | None:
    """``outputs = model(inputs)``, or ``model(inputs)`` by itself."""
    call = statement.value
    if not isinstance(call, ast.Call) or len(call.args) != 1 or call.keywords:
        return None
    value = view.value(call.func)
    if value is None or value.kind != "module" or _is_loss(call.func) or value.cls.endswith("Loss"):
        return None
    given = call.args[0]
    while isinstance(given, ast.Call) and isinstance(given.func, ast.Attribute) and given.func.attr in _MOVES:
        given = given.func.value
    if not isinstance(given, ast.Name):
        return None
    if isinstance(statement, ast.Expr):
        return _Forward(call, "", given.id)
    target = statement.targets[0]
    if len(statement.targets) != 1 or not isinstance(target, ast.Name) or target.id in {given.id, "_"}:
        return None
    return _Forward(call, target.id, given.id)


def _is_loss(function: ast.expr) -> bool:
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    return bool(_LOSS.search(name))


def _may_call_the_model(view: FileView, function: ast.expr) -> bool:
    """Whether a loss is a function of the files, or a method called just ``loss``, which may be meant for the input."""
    value = view.value(function)
    if value is not None and value.kind in {"function", "class"}:
        return True
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    return name in {"loss", "losses"} and (value is None or value.kind != "module")


def _body(view: FileView, statement: ast.stmt) -> ast.AST:
    """The innermost loop that a statement stands in, else its function or file."""
    for each in view.parents(statement):
        if isinstance(each, (ast.For, ast.AsyncFor, ast.While, *_FunctionNode)):
            return each
    return view.tree


def _inner(body: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a body in the order of the text, without those of functions inside of it."""
    for child in ast.iter_child_nodes(body):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _inner(child)


def _losses(body: ast.AST) -> Iterator[ast.Call]:
    for node in _inner(body):
        if isinstance(node, ast.Call) and _is_loss(node.func) and len(node.args) >= 2:
            yield node


def _follows(node: ast.expr, statement: ast.stmt) -> bool:
    return (node.lineno, node.col_offset) > (statement.end_lineno or 0, statement.end_col_offset or 0)


def _takes(loss: ast.Call, name: str) -> bool:
    """Whether a loss compares data, in the place of the prediction, with something else."""
    first, second = loss.args[:2]
    return isinstance(first, ast.Name) and first.id == name and not (isinstance(second, ast.Name) and second.id == name)


def _rebinds(body: ast.AST, name: str, statement: ast.stmt, loss: ast.Call) -> bool:
    return any(
        isinstance(node, ast.Name)
        and node.id == name
        and isinstance(node.ctx, ast.Store)
        and _follows(node, statement)
        and not _follows_call(node, loss)
        for node in _inner(body)
    )


def _follows_call(node: ast.Name, call: ast.Call) -> bool:
    return (node.lineno, node.col_offset) > (call.lineno, call.col_offset)


def _is_used(body: ast.AST, name: str) -> bool:
    """Whether anything reads a name, functions inside included."""
    return any(
        isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Store)
        for node in ast.walk(body)
    ) or any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"locals", "vars", "eval"}
        for node in ast.walk(body)
    )


def _violation(view: FileView, forward: _Forward, loss: ast.Call) -> Violation:
    model, given = view.text(forward.call.func), forward.given
    value = view.value(forward.call.func)
    sure = value is not None and value.sure
    unused = f"nothing uses {forward.output}" if forward.output else "nothing uses what it returns"
    edits = (view.replaced(loss.args[0], forward.output),) if forward.output else ()
    return Violation(
        loss,
        f"the loss is computed from {given}, which {model} was given, and not from what it returned",
        evidence=(f"line {forward.call.lineno} calls {model}({view.text(forward.call.args[0])}); {unused}",),
        remedy=f"{view.text(loss.func)}({forward.output or 'output'}, {view.text(loss.args[1])})",
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title=f"Compute the loss from {forward.output}",
        inferred=not sure,
    )


RULE = LintRule(
    code="O414",
    what="Looks for a loss whose first argument is what the model was given in the same pass of the loop, where "
    "nothing uses what the model returned.",
    why="The loss does not depend on the weights. Either `backward()` raises, because there is nothing to go back "
    "through, or, where the input comes from another net, that one is trained instead, and this model stays as it "
    "was.",
    example="for inputs, labels in loader:\n    outputs = model(inputs)\n    loss = criterion(inputs, labels)\n"
    "    loss.backward()",
    instead="for inputs, labels in loader:\n    outputs = model(inputs)\n    loss = criterion(outputs, labels)\n"
    "    loss.backward()",
    remedy="Give the loss the model's output.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the model begins to train",
    false_alarms="A loss of the input on purpose, beside a model that is called for what it does on the side, such "
    "as its hooks. Autoencoders, `criterion(outputs, inputs)`, and consistency losses use the output and are let be.",
    source="none found",
    triggers=("oss", "riterion", "cross_entropy", "nll", "mse", "bce"),
    check=check,
)
