"""H603: forward() was called directly, past every hook."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.file_view import FileView
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import Value

_HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "spectral_norm",
    "weight_norm",
)


def check(view: FileView) -> Iterator[Violation]:
    """Calls of `forward` on modules, but for those of a parent's class."""
    for call in view.nodes(ast.Call):
        function = call.func
        if not isinstance(function, ast.Attribute) or function.attr != "forward":
            continue
        owner = view.value(function.value)
        if owner is None or owner.kind not in {"module", "averaged"} or _is_called_otherwise(view, owner):
            continue
        yield from _of_self(view, call, function, owner) if owner.path == "self" else _of_module(view, function, owner)


def _of_module(view: FileView, function: ast.Attribute, owner: Value) -> Iterator[Violation]:
    receiver = view.text(function.value)
    hooks = _hooks(view)
    yield Violation(
        function,
        f"{receiver}.forward() runs past the hooks of {receiver}",
        evidence=(f"line {hooks[0].lineno}: {view.text(hooks[0].func)}",) if hooks else (),
        remedy=f"{receiver}(...)",
        severity=Severity.WARNING,
        edits=(view.replaced(function, receiver),),
        safety=Safety.SAFE if owner.sure else Safety.UNSAFE,
        title="Call the module",
        inferred=not owner.sure,
    )


def _of_self(view: FileView, call: ast.Call, function: ast.Attribute, owner: Value) -> Iterator[Violation]:
    """A method of the module runs its own pass without hooks: what is called is the user's own code."""
    inside = view.function(call).rpartition(".")[2]
    if inside in {"forward", "__call__"}:
        return
    receiver = view.text(function.value)
    lightning = view.walk.is_lightning(owner.cls)
    yield Violation(
        function,
        f"{receiver}.forward() runs past the hooks of this module",
        remedy=f"{receiver}(...)",
        severity=Severity.INFO,
        edits=() if lightning else (view.replaced(function, receiver),),
        safety=Safety.MANUAL if lightning else Safety.UNSAFE,
        title="" if lightning else "Call the module",
        inferred=not owner.sure,
    )


def _is_called_otherwise(view: FileView, owner: Value) -> bool:
    """Whether its class has a `__call__` of its own, which may do more than run `forward`."""
    return bool(owner.cls) and view.walk.method(owner.cls, "__call__") is not None


def _hooks(view: FileView) -> list[ast.Call]:
    """Where this file registers hooks, or what works by hooks."""
    return [
        call
        for call in view.nodes(ast.Call)
        if isinstance(call.func, (ast.Attribute, ast.Name))
        and (call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id) in _HOOKS
    ]


RULE = LintRule(
    code="H603",
    what="Looks for calls of `forward` by name on modules.",
    why="`model(x)` runs hooks and then `forward`; `model.forward(x)` runs no hook. Features that a hook collects "
    "are missing, old-style weight or spectral normalization does not renew its weight, wrappers do not average "
    "gradients, and Frostline's holds that work by hooks do not hold.",
    example="logits = model.forward(x)",
    instead="logits = model(x)",
    remedy="Call the module.",
    safety=Safety.SAFE,
    how_safe="safe for what certainly is a module, as hooks are what was meant to run; unsafe for what was told "
    "from a name and for `self.forward`",
    false_alarms="Without any hook on the module it makes no difference yet. `super().forward(x)`, "
    "`Parent.forward(self, x)` and classes with a `__call__` of their own are not reported; `self.forward(x)` is an "
    "info.",
    source="dslinter W5516",
    triggers=(".forward(",),
    check=check,
)
