"""N302: a normalization layer has no running statistics and depends on the batch in eval mode too."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.statements import has_own_line
from frostline.lint.torch_names import BATCH_NORMS

_FREEZING = re.compile(r"freeze|frozen|fix(ed)?_?(bn|norm|backbone|encoder|stat)|requires_grad(_\(|\s*=)\s*False", re.I)
_REMOVES = re.compile(r"\.running_(mean|var)\s*=|\._buffers|register_buffer")


def check(view: FileView) -> Iterator[Violation]:
    """``track_running_stats = False`` set on a layer, and batch norms that are built so where something is frozen."""
    for node in view.nodes(ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr == "track_running_stats" and _is_false(node.value):
                yield from _set(view, node, target)
    for call in view.nodes(ast.Call):
        if view.name(call.func) == "builtins.setattr" and len(call.args) == 3:
            name = call.args[1]
            if isinstance(name, ast.Constant) and name.value == "track_running_stats" and _is_false(call.args[2]):
                yield _switched_off(view, call, call.args[0], ())
        elif view.name(call.func) in BATCH_NORMS:
            yield from _built(view, call)


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _around(view: FileView, node: ast.AST) -> str:
    """The text of the function that something stands in, or of what stands outside of functions and classes."""
    functions = [each for each in view.parents(node) if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
    if functions:
        return view.text(functions[-1])
    outside = [s for s in view.tree.body if not isinstance(s, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
    return "\n".join(view.text(statement) for statement in outside)


def _set(view: FileView, node: ast.Assign, target: ast.Attribute) -> Iterator[Violation]:
    owner = view.value(target.value)
    if isinstance(target.value, ast.Name) and target.value.id == "self":
        return  # a layer's own constructor
    if owner is not None and owner.kind == "object":
        return  # a configuration
    if re.search(rf"\b{re.escape(view.text(target.value))}\.(eval\(\)|train\(False\))", _around(view, node)):
        return  # in eval mode, where it has no effect
    edits = ()
    if len(node.targets) == 1 and has_own_line(view, node) and not _REMOVES.search(_around(view, node)):
        edits = (view.replaced(node, f"{view.text(target.value)}.eval()"),)
    yield _switched_off(view, node, target.value, edits)


def _switched_off(view: FileView, node: ast.AST, layer: ast.expr, edits: tuple[object, ...]) -> Violation:
    around = _around(view, node)
    freezes = bool(_FREEZING.search(around))
    name = view.text(layer)
    removed = bool(_REMOVES.search(around))
    if removed:
        message = f"{name} loses its running statistics: it normalizes with the batch in eval mode too"
    else:
        message = f"track_running_stats = False freezes nothing: in train mode {name} normalizes with the batch"
    return Violation(
        node,
        message,
        evidence=(
            "the same function freezes something: that part is no fixed function now"
            if freezes
            else "outputs for a sample depend on the samples next to it, and differ from eval mode",
        ),
        remedy=f"{name}.eval() after every train(), or frostline.freeze",
        severity=Severity.WARNING if freezes or removed else Severity.INFO,
        edits=edits if freezes else (),  # pyright: ignore[reportArgumentType]
        safety=Safety.UNSAFE if edits and freezes else Safety.MANUAL,
        title=f"Put {name} into eval mode" if edits and freezes else "",
        inferred=not freezes,
    )


def _built(view: FileView, call: ast.Call) -> Iterator[Violation]:
    given = next((keyword for keyword in call.keywords if keyword.arg == "track_running_stats"), None)
    if given is None or not _is_false(given.value) or not _FREEZING.search(view.source.text):
        return
    yield Violation(
        given.value,
        "a batch norm that is built without running statistics normalizes with the batch in eval mode too",
        evidence=("something is frozen in this file: with this layer in it, it is no fixed function in any mode",),
        remedy="build it with track_running_stats=True, and call eval() on it to fix its statistics",
        severity=Severity.INFO,
        inferred=True,
    )


RULE = LintRule(
    code="N302",
    what="Looks for `track_running_stats = False` set on a layer that exists, and for batch norms that are built so "
    "in a file that freezes something.",
    why="It is taken for a way to freeze statistics. Built so, a layer has none, and normalizes with the batch in "
    "both modes. Set later, it keeps them, and uses them in eval mode only: in train mode the output for a sample "
    "depends on the samples next to it, and a frozen part is no fixed function.",
    example="for m in model.backbone.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        "
    "m.requires_grad_(False)\n        m.track_running_stats = False",
    instead="for m in model.backbone.modules():\n    if isinstance(m, nn.BatchNorm2d):\n        "
    "m.requires_grad_(False)\n        m.eval()",
    remedy="Put the layers into eval mode after every `train()`, or freeze the part with `frostline.freeze`; where "
    "the statistics are lost, `frostline.recalibrate` estimates them from data.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the layer normalizes with other figures, and a later `train()` undoes `eval()`",
    false_alarms="Layers that are meant to use the batch, as in few-shot learning: an info, where nothing in the "
    "same function freezes. A layer's own constructor and objects that are no modules are let be.",
    source="pytorch PR38084, pytorch#66073",
    triggers=("track_running_stats",),
    check=check,
)
