"""F101: an attribute that looks like requires_grad but means nothing was set: nothing is frozen."""

from __future__ import annotations

import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.attribute_writes import (
    AttributeWrite,
    as_call,
    attribute_writes,
    call_text,
    is_an_option,
    is_constructing,
    is_read,
    renamed,
)
from frostline.lint.file_view import FileView
from frostline.lint.near_names import distance
from frostline.lint.rule import LintRule, Violation

_RIGHT = "requires_grad"
# One of these stands in each name that is looked at.
_MARKS = ("_grad", "_gard", "_Grad", "egrad", "sgrad", "dgrad", "eGrad", "sGrad", "dGrad")
_OTHER_WORDS = frozenset({"need_grad", "needs_grad"})
_PARAMETERS = frozenset({"parameter", "parameters"})
# Settings are often called like this, and are no tensors.
_SETTINGS = re.compile(
    r"(^|_)(args|arguments|cfg|config|conf|opts?|options|hparams|params?_dict|ctx|settings|self|cls)$"
)


def check(view: FileView) -> Iterator[Violation]:
    """Assignments to attributes whose name is nearly the flag's."""
    for write in attribute_writes(view, _is_near):
        kind = write.value.kind if write.value is not None else ""
        if kind in _PARAMETERS:
            yield _on_parameter(view, write)
        elif write.name in _OTHER_WORDS or is_read(view, write.name) or is_an_option(view, write):
            continue  # what is read, or is a word of another meaning, may be an option of one's own
        elif kind in {"module", "averaged"}:
            # With an underscore it is what a module keeps for itself, beside freezing its parameters.
            if not is_constructing(view, write) and not write.name.startswith("_"):
                yield _on_module(view, write)
        elif (
            kind in {"", "tensor", "data", "unknown"}
            and isinstance(write.literal, bool)
            and not _SETTINGS.search(view.text(write.owner).rpartition(".")[2])
        ):
            yield _on_something(view, write)


def _is_near(name: str) -> bool:
    if name.rstrip("_") == _RIGHT or not any(mark in name for mark in _MARKS):
        return False
    return name in _OTHER_WORDS or distance(name.lower().replace("gradient", "grad"), _RIGHT) <= 2


def _on_parameter(view: FileView, write: AttributeWrite) -> Violation:
    assert write.value is not None
    several = write.value.kind == "parameters"
    sure = write.value.sure
    return Violation(
        write.node,
        f"{write.name!r} means nothing to torch: requires_grad stays what it was",
        evidence=(f"{view.text(write.owner)} {'are parameters' if several else 'is a parameter'}",),
        remedy=f"{view.text(write.owner)}.{_RIGHT}"
        if not several
        else f"for p in {view.text(write.owner)}: p.{_RIGHT}",
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=() if several else (renamed(view, write, _RIGHT),),
        # Whoever reads the misspelt name would find it gone.
        safety=Safety.MANUAL if several else Safety.SAFE if sure and not is_read(view, write.name) else Safety.UNSAFE,
        title=f"Rename to {_RIGHT}",
        inferred=not sure,
    )


def _on_module(view: FileView, write: AttributeWrite) -> Violation:
    assert write.value is not None
    edits = as_call(view, write)
    return Violation(
        write.node,
        f"{write.name!r} means nothing to torch: {view.text(write.owner)} is a module, and nothing in it is frozen",
        remedy=call_text(view, write),
        severity=Severity.ERROR if write.value.sure else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title="Call requires_grad_",
        inferred=not write.value.sure,
    )


def _on_something(view: FileView, write: AttributeWrite) -> Violation:
    return Violation(
        write.node,
        f"{write.name!r} means nothing to torch: requires_grad stays what it was",
        evidence=("nothing in the file reads it",),
        remedy=f"{view.text(write.owner)}.{_RIGHT}",
        severity=Severity.WARNING,
        edits=(renamed(view, write, _RIGHT),),
        # On a plain tensor, or on something unknown, the flag that is now set does more than was there before.
        safety=Safety.UNSAFE,
        title=f"Rename to {_RIGHT}",
        inferred=True,
    )


RULE = LintRule(
    code="F101",
    what="Looks at assignments to attributes (also annotated, in a row, and through `setattr` with a literal name) "
    "whose name is nearly `requires_grad`: `require_grad`, `requires_grads`, `requires_gradient`.",
    why="Python lets any attribute be set on a tensor, so nothing fails. The flag stays what it was: everything that "
    "was meant to be frozen trains, and the loss falls as if all were well.",
    example="for p in model.backbone.parameters():\n    p.require_grad = False",
    instead="for p in model.backbone.parameters():\n    p.requires_grad = False",
    remedy="Rename it to `requires_grad`, or freeze with `frostline.freeze`, which checks that it holds.",
    safety=Safety.SAFE,
    how_safe="safe on parameters, because nothing reads the misspelt name; unsafe on modules, and on what may be a "
    "plain tensor, where the flag would begin to do something",
    false_alarms="An object that is no tensor and has an attribute by such a name on purpose. Names that the file also "
    "reads, settings (`args`, `cfg`), and names with an underscore on modules are let be; silence others with "
    "`# noqa: F101`.",
    source="codertimo/BERT-pytorch#104, Time-Series-Library#743, TorchFix TOR002",
    triggers=_MARKS,
    check=check,
)
