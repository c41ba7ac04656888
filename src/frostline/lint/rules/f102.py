"""F102: requires_grad was set on a module, which does nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.attribute_writes import (
    AttributeWrite,
    as_call,
    attribute_writes,
    call_text,
    is_an_option,
    is_constructing,
)
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import Value

# What is taken from these by an index is a parameter.
_OF_PARAMETERS = ("ParameterList", "ParameterDict")


def check(view: FileView) -> Iterator[Violation]:
    """Assignments of `requires_grad` to what is a module."""
    for write in attribute_writes(view, "requires_grad".__eq__):
        value = write.value
        # Loops over the children of a module are F105's.
        if value is None or value.kind not in {"module", "averaged"} or write.is_on_each or _may_be_tensor(view, write):
            continue
        if is_an_option(view, write) or (is_constructing(view, write) and write.literal is None):
            continue
        sure = _is_sure(view, write, value) and not is_constructing(view, write)
        edits = as_call(view, write)
        yield Violation(
            write.node,
            f"requires_grad was set on {view.text(write.owner)}, a module, which has no such flag: "
            "its parameters stay as they were",
            remedy=call_text(view, write),
            severity=Severity.ERROR if sure else Severity.WARNING,
            edits=edits,
            safety=Safety.MANUAL if not edits else Safety.SAFE if sure else Safety.UNSAFE,
            title="Call requires_grad_",
            inferred=not sure,
        )


def _may_be_tensor(view: FileView, write: AttributeWrite) -> bool:
    """Whether it was taken out of something that also holds parameters."""
    owner = write.owner
    if isinstance(owner, ast.Subscript):
        base = view.value(owner.value)
        return base is not None and base.cls.endswith(_OF_PARAMETERS)
    return isinstance(owner, ast.Call) and view.name(owner.func) == "builtins.getattr"


def _is_sure(view: FileView, write: AttributeWrite, value: Value) -> bool:
    """A module by what it was made of; or a part by its usual name, of a net that a library made."""
    if value.sure or not isinstance(write.owner, ast.Attribute):
        return value.sure
    base = view.value(write.owner.value)
    return base is not None and base.kind == "module" and base.sure and not base.cls and base.path != "self"


RULE = LintRule(
    code="F102",
    what="Looks at assignments of `requires_grad` (also in a row, and through `setattr`) to a module: to what was made "
    "as one, to what is asked for its parameters, or to what is called like one.",
    why="`requires_grad` is a flag of tensors. On a module the assignment makes an attribute that nothing reads: the "
    "part trains on. The method for modules is `requires_grad_()`.",
    example="model = torchvision.models.resnet18()\nmodel.layer1.requires_grad = False",
    instead="model = torchvision.models.resnet18()\nmodel.layer1.requires_grad_(False)",
    remedy="Call `requires_grad_(False)`, or freeze the part with `frostline.freeze`.",
    safety=Safety.SAFE,
    how_safe="safe where it is certainly a module, because nothing reads the attribute; unsafe where only its name "
    "says so",
    false_alarms="A tensor that is called like a module (`encoder`), and a module of yours with an option of this name "
    "in a file that is not linted along. Classes that read `self.requires_grad` are let be; silence others with "
    "`# noqa: F102`.",
    source="MICCAI23-ProtoContra-SFDA#18; 4 of 10 public hits that were read",
    triggers=("requires_grad",),
    check=check,
)
