"""F105: another framework's way of freezing was used, which means nothing to PyTorch."""

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
    is_read,
)
from frostline.lint.file_view import FileView
from frostline.lint.frameworks import uses_another
from frostline.lint.rule import LintRule, Violation

# The attribute, where it comes from, and the value with which it freezes.
_IDIOMS: dict[str, tuple[str, object]] = {
    "trainable": ("Keras", False),
    "is_trainable": ("Keras", False),
    "stop_gradient": ("Paddle", True),
    "grad_req": ("MXNet", "null"),
}
# What makes a file one of torch's, where nothing is imported.
_TORCH = re.compile(r"\btorch\b|\bnn\.|\.(named_)?(parameters|modules|children)\(")
_PARTS = frozenset({"parameter", "module", "averaged"})
_CALLED_LIKE_ONE = re.compile(r"^(layers?|block|child|module|param|parameter|m|p)$")


def check(view: FileView) -> Iterator[Violation]:
    """Switches of other frameworks on modules and parameters, and loops over modules that set requires_grad."""
    for write in attribute_writes(view, lambda name: name in _IDIOMS or name == "requires_grad"):
        if write.name == "requires_grad":
            if write.value is not None and write.value.kind == "module" and write.is_on_each:
                yield from _on_each(view, write)
        elif not write.is_on_self and not _is_elsewhere(view) and not is_read(view, write.name):
            yield from _idiom(view, write)


def _is_elsewhere(view: FileView) -> bool:
    """Whether the file is one of another framework, or of none that is known."""
    return uses_another(view) or _TORCH.search(view.source.text) is None


def _on_each(view: FileView, write: AttributeWrite) -> Iterator[Violation]:
    if is_an_option(view, write):
        return
    assert write.value is not None
    owner = view.text(write.owner)
    edits = as_call(view, write)
    yield Violation(
        write.node,
        f"{owner} is a module, not a parameter, and has no flag requires_grad: nothing is frozen",
        evidence=(f"the loop goes over modules of {write.value.owner}",) if write.value.owner else (),
        remedy=call_text(view, write),
        severity=Severity.ERROR if write.value.sure else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title="Call requires_grad_",
        inferred=not write.value.sure,
    )


def _idiom(view: FileView, write: AttributeWrite) -> Iterator[Violation]:
    origin, freezing = _IDIOMS[write.name]
    known = write.value is not None and write.value.kind in _PARTS
    if is_an_option(view, write) or not (
        known
        or (isinstance(write.literal, (bool, str)) and _CALLED_LIKE_ONE.match(view.text(write.owner).partition("[")[0]))
    ):
        return
    sure = known and write.value is not None and write.value.sure
    if isinstance(write.literal, (bool, str)):
        flag = str(write.literal != freezing)
    else:
        flag = "" if freezing is False else "False"
    edits = as_call(view, write, flag) if known and (flag or write.given is not None) else ()
    yield Violation(
        write.node,
        f"{write.name!r} is an idiom of {origin} and means nothing to torch: {view.text(write.owner)} "
        f"{'is not frozen' if flag != 'True' else 'is as trainable as it was'}",
        remedy=call_text(view, write, flag),
        severity=Severity.ERROR if sure else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title="Call requires_grad_",
        inferred=not sure,
    )


RULE = LintRule(
    code="F105",
    what="Looks for the switches of other frameworks on modules and parameters (`trainable` of Keras, `stop_gradient` "
    "of Paddle, `grad_req` of MXNet), and for loops over modules that set `requires_grad` on each.",
    why="Python lets any attribute be set on a module. The line runs, nothing is frozen, and the part trains on.",
    example="for layer in model.backbone.children():\n    layer.trainable = False",
    instead="for layer in model.backbone.children():\n    layer.requires_grad_(False)",
    remedy="Call `requires_grad_(False)`, or freeze the part with `frostline.freeze`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: it freezes what the line names, which nobody has trained so before",
    false_alarms="A module that has an option of this name and acts on it, in a file that is not linted along: what "
    "the file reads, what is set on `self`, and files that import another framework are let be. Otherwise give the "
    "option another name.",
    source="none found",
    triggers=("requires_grad", "trainable", "stop_gradient", "grad_req"),
    check=check,
)
