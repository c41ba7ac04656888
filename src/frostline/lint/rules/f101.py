"""F101: an attribute that looks like requires_grad but means nothing was set: nothing is frozen."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import Value

# One letter too few, too many or swapped, another case, or words put together otherwise.
_TYPO = re.compile(
    r"^(?!requires_grad_?$)(_?requires?_?s?_?(grads?|gradients?)|requie?re?s_?grads?|reqiures_grad|require_gard|requires_gard|"
    r"required_grads?|needs?_grads?|requires?Grads?|require_gradients?)_?$",
    re.I,
)
# Attributes by this name that libraries and people have on things of their own.
_KINDS = {"parameter", "parameters", "module"}


def check(view: FileView) -> Iterator[Violation]:
    """Assignments to attributes, also through `setattr` and with an annotation, whose name is nearly the flag's."""
    for node in view.nodes(ast.Assign, ast.AnnAssign, ast.AugAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Attribute) and _TYPO.match(target.attr):
                yield from _violation(view, target, target.attr, view.value(target.value), node.value)
    for call in view.nodes(ast.Call):
        if view.name(call.func) != "builtins.setattr" or len(call.args) != 3:
            continue
        name = call.args[1]
        if isinstance(name, ast.Constant) and isinstance(name.value, str) and _TYPO.match(name.value):
            yield from _violation(view, name, name.value, view.value(call.args[0]), call.args[2])


def _violation(
    view: FileView, node: ast.expr, name: str, owner: Value | None, given: ast.expr | None
) -> Iterator[Violation]:
    if owner is not None and owner.path == "self" and owner.kind == "object":
        return  # an attribute of a class of one's own
    if not isinstance(given, ast.Constant) and owner is None:
        return
    receiver = view.text(node.value) if isinstance(node, ast.Attribute) else view.text(node)
    on_parameter = owner is not None and owner.kind in _KINDS
    if owner is not None and owner.kind == "module":
        flag = view.text(given) if given is not None else "False"
        remedy = f"{receiver}.requires_grad_({flag})"
        yield Violation(
            node,
            f"{name!r} means nothing to torch: {receiver} is a module, and nothing in it is frozen",
            remedy=remedy,
            severity=Severity.ERROR,
        )
        return
    edit = (
        view.attribute_name(node, "requires_grad")
        if isinstance(node, ast.Attribute)
        else view.replaced(node, "'requires_grad'" if view.text(node).startswith("'") else '"requires_grad"')
    )
    yield Violation(
        node,
        f"{name!r} means nothing to torch: requires_grad stays what it was",
        remedy="requires_grad",
        severity=Severity.ERROR if on_parameter else Severity.WARNING,
        edits=(edit,),
        # On a plain tensor or on something unknown, the flag that is now set may do more than was there before.
        safety=Safety.SAFE if on_parameter else Safety.UNSAFE,
        title="Rename to requires_grad",
        inferred=not on_parameter,
    )


RULE = LintRule(
    code="F101",
    what="Looks at assignments to attributes (also annotated, in a row, and through `setattr` with a literal name) whose name is "
    "nearly `requires_grad`: `require_grad`, `requires_grads`, `requires_gradient`.",
    why="Python lets any attribute be set on a tensor, so nothing fails. The flag stays what it was: everything that was meant to be "
    "frozen trains, and the loss falls as if all were well.",
    example="for p in model.backbone.parameters():\n    p.require_grad = False",
    instead="for p in model.backbone.parameters():\n    p.requires_grad = False",
    remedy="Rename it to `requires_grad`, or freeze with `frostline.freeze`, which checks that it holds.",
    safety=Safety.SAFE,
    how_safe="safe on parameters, because nothing reads the misspelt name; unsafe on what may be a plain tensor, where the flag "
    "would begin to do something",
    false_alarms="An object that is no tensor and has an attribute by such a name on purpose. Assignments to `self` in classes that are "
    "no modules are let be; silence others with `# noqa: F101`.",
    source="codertimo/BERT-pytorch#104, Time-Series-Library#743, TorchFix TOR002",
    triggers=("equire", "need_grad", "needs_grad", "reqiures"),
    check=check,
)
