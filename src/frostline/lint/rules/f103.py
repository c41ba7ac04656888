"""F103: the method requires_grad_ was overwritten, or the flag was compared instead of set."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import TypeGuard

from frostline.findings import Safety, Severity
from frostline.lint.attribute_writes import AttributeWrite, as_call, attribute_writes, call_text, renamed
from frostline.lint.diagnostic import Edit
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.thrown_away import thrown_away
from frostline.lint.values import Value

_TORCHS = frozenset({"parameter", "module", "tensor", "data", "averaged"})
_FLAGS = frozenset({"requires_grad", "requires_grad_"})


def check(view: FileView) -> Iterator[Violation]:
    """`p.requires_grad_ = False`; `p.requires_grad == False` and `p.requires_grad: False` as statements."""
    for write in attribute_writes(view, "requires_grad_".__eq__):
        if isinstance(write.literal, (bool, int)) or (_is_known(write.value) and _is_flag(view, write.given)):
            yield _overwritten(view, write)
    for statement in thrown_away(view):
        compared = statement.value
        if not isinstance(compared, ast.Compare) or len(compared.ops) != 1:
            continue
        left, right = compared.left, compared.comparators[0]
        if isinstance(compared.ops[0], (ast.Eq, ast.Is)) and _is_truth(right) and _names_flag(left):
            yield _not_set(view, statement, left, right, "compared")
    for statement in view.nodes(ast.AnnAssign):
        if statement.value is None and _is_truth(statement.annotation) and _names_flag(statement.target):
            yield _not_set(view, statement, statement.target, statement.annotation, "annotated")


def _overwritten(view: FileView, write: AttributeWrite) -> Violation:
    edits = as_call(view, write)
    if not edits and write.value is not None and write.value.kind == "parameter":
        edits = (renamed(view, write, "requires_grad"),)
    known = _is_known(write.value)
    return Violation(
        write.node,
        f"the method requires_grad_ of {view.text(write.owner)} is overwritten, not called: no flag is set",
        remedy=call_text(view, write),
        severity=Severity.ERROR if known else Severity.WARNING,
        edits=edits,
        safety=Safety.MANUAL if not edits else Safety.SAFE if known else Safety.UNSAFE,
        title="Set the flag",
        inferred=not known,
    )


def _not_set(view: FileView, statement: ast.stmt, left: ast.Attribute, right: ast.expr, how: str) -> Violation:
    value = view.value(left.value)
    owner, flag = view.text(left.value), view.text(right)
    on_module = left.attr == "requires_grad_" or (value is not None and value.kind in {"module", "averaged"})
    right_text = f"{owner}.requires_grad_({flag})" if on_module else f"{owner}.requires_grad = {flag}"
    known = _is_known(value)
    edits = () if "#" in view.text(statement) else (Edit(*_span(view, statement), right_text),)
    return Violation(
        statement,
        f"requires_grad of {owner} is {how}, not set: {view.text(statement)} does nothing",
        remedy=right_text,
        severity=Severity.ERROR if known else Severity.WARNING,
        edits=edits,
        safety=Safety.MANUAL if not edits else Safety.SAFE if known else Safety.UNSAFE,
        title="Set the flag",
        inferred=not known,
    )


def _span(view: FileView, statement: ast.stmt) -> tuple[int, int]:
    return view.source.start(statement), view.source.end(statement)


def _names_flag(node: ast.expr) -> TypeGuard[ast.Attribute]:
    return isinstance(node, ast.Attribute) and node.attr in _FLAGS


def _is_truth(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, bool)


def _is_flag(view: FileView, given: ast.expr | None) -> bool:
    """Whether it is a flag and no function: a name, a comparison, a negation."""
    return isinstance(given, (ast.Name, ast.Compare, ast.UnaryOp)) and not view.name(given)


def _is_known(value: Value | None) -> bool:
    return value is not None and value.kind in _TORCHS and value.sure


RULE = LintRule(
    code="F103",
    what="Looks for assignments to `requires_grad_`, and for statements that compare `requires_grad` with `True` or "
    "`False`, or annotate it so, and do nothing else.",
    why="The lines run and set no flag: nothing is frozen, and the part trains on. Where the method was overwritten, "
    "the next call of `requires_grad_()` fails.",
    example="for p in model.backbone.parameters():\n    p.requires_grad_ = False",
    instead="for p in model.backbone.parameters():\n    p.requires_grad_(False)",
    remedy="Call the method, or set the flag with one `=`, or freeze the part with `frostline.freeze`.",
    safety=Safety.SAFE,
    how_safe="safe on what is certainly a tensor or module: the line does what it says; unsafe where only the "
    "attribute tells",
    false_alarms="A comparison in a notebook, to look at its value: the last line of a cell is let be. An object that "
    "is no tensor and keeps something under `requires_grad_`: functions are let be.",
    source="none found",
    triggers=("requires_grad",),
    check=check,
)
