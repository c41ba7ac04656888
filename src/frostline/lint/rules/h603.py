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
    """Calls of `forward` on modules, but for those of the class itself or of its parent."""
    for call in view.nodes(ast.Call):
        function = call.func
        if not isinstance(function, ast.Attribute) or function.attr != "forward":
            continue
        owner = view.value(function.value)
        if owner is None or owner.kind not in {"module", "averaged"} or _is_called_otherwise(view, owner):
            continue
        # A class that calls its own pass knows its hooks.
        if owner.path != "self":
            yield from _of_module(view, function, owner)


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
    "from a name",
    false_alarms="Without any hook on the module it makes no difference yet. `super().forward(x)`, "
    "`Parent.forward(self, x)`, `self.forward(x)` inside of the class, which may skip its own hooks on purpose, and "
    "classes with a `__call__` of their own are not reported.",
    source="dslinter W5516",
    triggers=(".forward(",),
    check=check,
)
