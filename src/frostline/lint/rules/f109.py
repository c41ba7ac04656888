"""F109: a parameter was frozen between backward and step: its gradient is still applied."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.iterations import loops_of, meet
from frostline.lint.rule import LintRule, Violation
from frostline.lint.trained_parts import is_given, optimizer_of
from frostline.lint.values import owner_of, related

_BORDERS = frozenset({"backward", "zero_grad", "grad_set", "step", "scaler_step"})


def check(view: FileView) -> Iterator[Violation]:
    """Freezing right behind a backward pass and before the step that applies its gradients."""
    for flow in view.flows:
        for index, event in enumerate(flow.events):
            if event.what != "flag" or event.get("value") is not False or event.node is None:
                continue
            backward = _neighbour(flow, index, reversed(range(index)))
            step = _neighbour(flow, index, range(index + 1, len(flow.events)))
            if backward is None or step is None or backward.what != "backward" or "step" not in step.what:
                continue
            if _in_one_pass(backward, event, step):
                yield from _violation(flow, event, backward, step)


def _neighbour(flow: Flow, index: int, places: Iterator[int] | range) -> Event | None:
    flag = flow.events[index]
    part = owner_of(flag.path)
    for place in places:
        event = flow.events[place]
        if event.what not in _BORDERS or not meet(flag, event):
            continue
        if event.what == "grad_set" and not related(owner_of(event.path), part):
            continue
        return event
    return None


def _in_one_pass(backward: Event, flag: Event, step: Event) -> bool:
    """Whether the three happen in one iteration, the step at all events."""
    loops = [[loop.key for loop in loops_of(event)] for event in (backward, flag, step)]
    if not loops[0] == loops[1] == loops[2]:
        return False
    return all(condition in flag.conditions or condition in backward.conditions for condition in step.conditions)


def _violation(flow: Flow, flag: Event, backward: Event, step: Event) -> Iterator[Violation]:
    part = owner_of(flag.path)
    optimizer = optimizer_of(flow, step)
    given = is_given(flow, part, optimizer) if optimizer is not None else None
    if given is False or not part or flag.node is None:
        return
    name = shown(part)
    yield Violation(
        flag.node,
        f"{name} is frozen between backward and step: the gradient that it has is still applied",
        evidence=(
            f"line {backward.line} is the backward pass that fills its gradients",
            f"line {step.line} applies them, whether or not it requires any",
        ),
        remedy="freeze before backward() or after step(), or set p.grad = None with it",
        severity=Severity.ERROR if given else Severity.WARNING,
        inferred=not given,
    )


RULE = LintRule(
    code="F109",
    what="Looks for `requires_grad` set to `False` behind a backward pass and before the step of the same iteration, "
    "with nothing in between that clears gradients.",
    why="An optimizer moves whatever has a `.grad`, whether or not it requires one. The step that follows applies "
    "the gradient once more, and momentum with it.",
    example="optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nfor step, (x, y) in enumerate(loader):\n    "
    "optimizer.zero_grad()\n    criterion(model(x), y).backward()\n    if step == 100:\n        "
    "model.backbone.requires_grad_(False)\n    optimizer.step()",
    instead="optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\nfor step, (x, y) in enumerate(loader):\n    if "
    "step == 100:\n        model.backbone.requires_grad_(False)\n    optimizer.zero_grad()\n    criterion(model(x), "
    "y).backward()\n    optimizer.step()",
    remedy="Freeze before `backward()` or after `step()`, set `p.grad = None` with it, or freeze with "
    "`frostline.freeze(..., optimizer=...)`.",
    safety=Safety.MANUAL,
    how_safe="manual: the last step may be meant to count, and the block is to be moved as a whole",
    false_alarms="A part that the optimizer does not have, where the optimizer is made elsewhere: a warning there. "
    "Nets that are frozen for the pass of another net, between two backward passes, are never reported.",
    source="sparseml#965",
    triggers=("requires_grad",),
    check=check,
)
