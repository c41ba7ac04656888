"""F108: what was frozen is made trainable again later."""

from __future__ import annotations

import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import is_whole_flag, names_a_result, other_names, reaches, shown
from frostline.lint.iterations import loops_of, meet
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import is_below, owner_of, related

# What may train, or measure what the freezing was for.
_USES = frozenset({"forward", "backward", "step", "scaler_step", "save", "state_dict"})
_FOLLOWS = _USES | {"optimizer", "add_group"}
_UNDOES = re.compile(r"unfreeze|thaw|un_freeze|release|enable", re.I)


def check(view: FileView) -> Iterator[Violation]:
    """Flags that are set again over the whole of what was frozen, with nothing in between that could use it."""
    for flow in view.flows:
        for index, event in enumerate(flow.events):
            if is_whole_flag(event, False) and "*" not in owner_of(event.path):
                yield from _undone(flow, index)


def _undone(flow: Flow, index: int) -> Iterator[Violation]:
    frozen = flow.events[index]
    part, aliases = owner_of(frozen.path), other_names(flow)
    for at in range(index + 1, len(flow.events)):
        event = flow.events[at]
        if not meet(frozen, event):
            continue
        if event.what in _USES or (event.what == "unknown" and event.get("paths")):
            return
        if event.what == "new" and is_below(part, event.path) and not names_a_result(flow, at):
            return  # another module by that name
        if is_whole_flag(event, True) and reaches(aliases, event.path, part):
            if _wins(flow, frozen, at, part):
                yield _violation(frozen, event, part)
            return


def _wins(flow: Flow, frozen: Event, at: int, part: str) -> bool:
    """Whether a thawing is the last word, unconditionally, in the same run, and something trains behind it."""
    thawed = flow.events[at]
    if thawed.node is None or any(condition not in frozen.conditions for condition in thawed.conditions):
        return False
    if any(loop not in frozen.loops for loop in loops_of(thawed)):
        return False  # in an epoch or an iteration: a schedule
    if any(_UNDOES.search(name) for name in (thawed.function, *thawed.via)):
        return False  # says so itself
    if flow.owner and frozen.function != thawed.function and frozen.function.endswith(".__init__") and not thawed.via:
        return False  # a method for a later stage
    later = flow.events[at + 1 :]
    if any(e.what == "flag" and e.get("value") is not True and related(owner_of(e.path), part) for e in later):
        return False
    return any(e.what in _FOLLOWS or (e.what == "unknown" and e.get("paths")) for e in later)


def _violation(frozen: Event, thawed: Event, part: str) -> Violation:
    assert thawed.node is not None
    name = shown(part)
    # A class that freezes in its constructor, in a program that means to train all of it.
    is_elsewhere = frozen.function != thawed.function and frozen.function.endswith("__init__")
    is_named = frozen.get("how") == "module_method" or thawed.get("how") == "module_method"
    over = shown(owner_of(thawed.path))
    with_all = f" with all of {over}" if over != name else ""
    where = f" ({frozen.origin})" if frozen.origin else ""
    return Violation(
        thawed.node,
        f"{name}, frozen at line {frozen.line}, is made trainable again{with_all}",
        evidence=(
            f"line {frozen.line} freezes {name}{where}",
            f"line {thawed.line} sets requires_grad of {over} to True: the last one wins",
        ),
        remedy="freeze last, or with frostline.freeze, which a later write does not undo",
        severity=Severity.WARNING if is_elsewhere else Severity.ERROR,
        inferred=is_elsewhere and not is_named,
    )


RULE = LintRule(
    code="F108",
    what="Looks for `requires_grad` set to `True` over the whole of what an earlier line froze, where nothing comes "
    "between that could train, and no later line freezes it again.",
    why="Both lines look right where they stand. The last one wins: the part trains, and the pretrained weights are "
    "lost.",
    example="for p in model.backbone.parameters():\n    p.requires_grad = False\nfor p in model.parameters():\n    "
    "p.requires_grad = True\noptimizer = torch.optim.SGD(model.parameters(), lr=0.1)",
    instead="for p in model.parameters():\n    p.requires_grad = True\nfor p in model.backbone.parameters():\n    "
    "p.requires_grad = False\noptimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)",
    remedy="Freeze last, or freeze with `frostline.freeze(..., optimizer=...)`, which a later write does not undo.",
    safety=Safety.MANUAL,
    how_safe="manual: which of the two lines was meant is not known",
    false_alarms="A class that freezes in its constructor, in a program that means to train all of it: a warning "
    "then. To freeze everything and thaw the head, to thaw under a condition or in a loop over epochs, and to thaw "
    "after training are never reported.",
    source="ultralytics/yolov5#1213",
    triggers=("requires_grad",),
    check=check,
)
