"""F110: a frozen parameter keeps moving: its gradient is zero, not None."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.iterations import meet, repeats
from frostline.lint.rule import LintRule, Violation
from frostline.lint.trained_parts import is_given, optimizer_of
from frostline.lint.values import is_below, owner_of, related

_STEPS = frozenset({"step", "scaler_step"})
_TIME = re.compile(r"epoch|step|iter|batch|phase|stage|progress", re.I)
# Without momentum and weight decay these are still where zeros move something.
_MOMENTS = re.compile(r"Adam|RAdam|NAdam|Lion|LAMB|Lamb|Muon|Adafactor|Ranger|Sophia|Prodigy")


def check(view: FileView) -> Iterator[Violation]:
    """Gradients that are filled with zeros, of an optimizer that has something that is frozen while it runs."""
    for flow in view.flows:
        zeros = [e for e in flow.of("zero_grad") if e.get("set_to_none") is False and e.node is not None]
        for zero in zeros:
            yield from _drifting(view, flow, zero)


def _drifting(view: FileView, flow: Flow, zero: Event) -> Iterator[Violation]:
    for index, flag in enumerate(flow.events):
        if flag.what != "flag" or flag.get("value") is not False:
            continue
        part = owner_of(flag.path)
        steps = [i for i, e in enumerate(flow.events) if e.what in _STEPS and _clears(zero, e, part)]
        if not part or not meet(flag, zero) or not steps or not _is_midway(flow, index, steps):
            continue
        if _is_dropped(flow, index, part):
            continue
        optimizer = optimizer_of(flow, flow.events[steps[-1]])
        given = is_given(flow, part, optimizer) if optimizer is not None else None
        moves = _moves(optimizer)
        if given is False or moves is False:
            continue
        yield _violation(view, zero, flag, part, optimizer, bool(given and moves))


def _clears(zero: Event, step: Event, part: str) -> bool:
    """Whether a step uses what was cleared: the same optimizer's, or that of the model."""
    if zero.get("of") == "module":
        return related(owner_of(zero.path), part)
    return zero.path == step.path


def _is_midway(flow: Flow, index: int, steps: list[int]) -> bool:
    """Whether something was trained before it is frozen: by the order, or by a condition on the epoch or step."""
    flag = flow.events[index]
    if any(step < index for step in steps):
        # In a loop that begins with freezing, only the first pass comes before any step.
        return True
    for step in steps:
        for loop in flow.events[step].loops:
            inside = [each for each in flag.loops if each.key == loop.key and repeats(loop)]
            for condition in flag.conditions[loop.conditions :] if inside else ():
                names = {n.id for n in ast.walk(condition.node) if isinstance(n, ast.Name)} if condition.node else set()
                text = ast.unparse(condition.node) if condition.node is not None else ""
                if names & set(loop.targets) or _TIME.search(text):
                    return True
    return False


def _is_dropped(flow: Flow, index: int, part: str) -> bool:
    """Whether gradients are set to None with it, or the optimizer is made anew."""
    for event in flow.events[max(index - 3, 0) :]:
        if event.what == "grad_set" and related(owner_of(event.path), part):
            return True
        if event.what == "hold":
            return True
        if event.what == "zero_grad" and event.get("set_to_none") is not False and is_below(part, event.path):
            return True
    return any(e.what in {"optimizer", "hold"} for e in flow.events[index + 1 :])


def _moves(optimizer: Event | None) -> bool | None:
    """Whether a step with zeros moves anything: by momentum, weight decay or moments."""
    if optimizer is None:
        return None
    cls = str(optimizer.get("cls") or "")
    if _MOMENTS.search(cls.rpartition(".")[2]):
        return True
    node = optimizer.node
    if not isinstance(node, ast.Call) or optimizer.origin:
        return None
    told: bool | None = False
    for keyword in node.keywords:
        if keyword.arg is None:
            told = None
        elif keyword.arg in {"momentum", "weight_decay"}:
            value = keyword.value
            if not isinstance(value, ast.Constant):
                told = told or None
            elif value.value:
                return True
    # Given by position: SGD(params, lr, momentum, dampening, weight_decay).
    return True if len(node.args) > 2 else told


def _violation(
    view: FileView, zero: Event, flag: Event, part: str, optimizer: Event | None, is_sure: bool
) -> Violation:
    name = shown(part)
    edits = ()
    if isinstance(zero.node, ast.Call) and not zero.origin:
        given = next((k.value for k in zero.node.keywords if k.arg == "set_to_none"), None)
        given = given or (zero.node.args[0] if zero.node.args else None)
        edits = (view.replaced(given, "True"),) if given is not None else ()
    evidence = [f"line {flag.line} freezes {name} while training runs"]
    if optimizer is not None:
        evidence.append(f"line {optimizer.line} gives it to an optimizer that moves what has a gradient, be it zero")
    assert zero.node is not None
    return Violation(
        zero.node,
        f"{name} is frozen but keeps moving: its gradients are zeros, not None",
        evidence=tuple(evidence),
        remedy="zero_grad(set_to_none=True), the default, or frostline.freeze(..., optimizer=...)",
        severity=Severity.ERROR if is_sure else Severity.WARNING,
        edits=edits,
        safety=Safety.UNSAFE if edits else Safety.MANUAL,
        title="Set gradients to None" if edits else "",
        inferred=not is_sure,
    )


RULE = LintRule(
    code="F110",
    what="Looks for `zero_grad(set_to_none=False)` where a part that the optimizer has is frozen while training "
    "runs: behind a step, or in the loop under a condition on the epoch or step; and the optimizer has momentum, "
    "weight decay or moments.",
    why="An optimizer skips a parameter whose `.grad` is `None`, and only that. With zeros, momentum runs on, weight "
    "decay shrinks, and the moments of Adam go on pushing: the frozen part drifts.",
    example="optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)\nfor epoch in range(10):\n    if "
    "epoch == 5:\n        model.backbone.requires_grad_(False)\n    for x, y in loader:\n        "
    "optimizer.zero_grad(set_to_none=False)\n        criterion(model(x), y).backward()\n        optimizer.step()",
    instead="optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)\nfor epoch in range(10):\n    if "
    "epoch == 5:\n        model.backbone.requires_grad_(False)\n    for x, y in loader:\n        "
    "optimizer.zero_grad()\n        criterion(model(x), y).backward()\n        optimizer.step()",
    remedy="Let `zero_grad` set gradients to `None`, set `p.grad = None` when freezing, or freeze with "
    "`frostline.freeze(..., optimizer=...)`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: code that reads `.grad` finds `None` where it found zeros",
    false_alarms="An optimizer that is made elsewhere and does not have the part: a warning there. What is frozen "
    "before the first step has no gradient and is not reported.",
    source="fairseq#4702, Muon#54, explosion/curated-transformers#69",
    triggers=("zero_grad",),
    check=check,
)
