"""S451: a parameter group came after the scheduler and is scheduled wrongly."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event
from frostline.lint.file_view import FileView
from frostline.lint.iterations import after, before, meet
from frostline.lint.rule import LintRule, Violation

# What a group that comes later does to them, as measured with torch 2.13.
_RAISES = {
    "CosineAnnealingWarmRestarts": "ValueError: zip() of rates and groups, one of which is shorter",
    "LambdaLR": "ValueError: zip() of rates and groups, one of which is shorter",
    "MultiplicativeLR": "ValueError: zip() of rates and groups, one of which is shorter",
    "CyclicLR": "ValueError: zip() of rates and groups, one of which is shorter",
    "SequentialLR": "ValueError: zip() of rates and groups, one of which is shorter",
    "OneCycleLR": "KeyError: 'initial_lr'",
}
_OVERSHOOTS = {"LinearLR", "ConstantLR"}
_TORCH = "torch.optim.lr_scheduler."


def check(view: FileView) -> Iterator[Violation]:
    """Calls of `add_param_group` on an optimizer that has a scheduler which cannot take another group."""
    for flow in view.flows:
        for added in flow.of("add_group"):
            if added.node is None or not added.path:
                continue
            schedulers = [e for e in before(flow, added, "scheduler") if e.get("of") == added.path and meet(e, added)]
            rebuilt = [e for e in after(flow, added, "scheduler") if e.get("of") == added.path]
            if schedulers and not rebuilt:
                yield from _violation(added, schedulers)


def _violation(added: Event, schedulers: list[Event]) -> Iterator[Violation]:
    """What the schedulers of an optimizer do with a group that they were not made for."""
    # The latest come first: one that was replaced by another under its name does no harm.
    current = list({event.path or str(event.line): event for event in reversed(schedulers)}.values())
    raising = next(((e, text) for e in current if (text := _raises(e.get("cls", "")))), None)
    overshooting = next((e for e in current if _last(e) in _OVERSHOOTS and e.get("cls").startswith(_TORCH)), None)
    if raising is not None:
        scheduler, error = raising
        yield _found(
            added,
            scheduler,
            f"this group comes after {_last(scheduler)} was made: its next step raises {error.split(':')[0]}",
            error,
            Severity.ERROR,
        )
    elif overshooting is not None:
        yield _found(
            added,
            overshooting,
            f"this group comes after {_last(overshooting)} was made, whose warm-up multiplies its rate: it ends "
            f"too high",
            "what is left of the warm-up multiplies the rate that the group was given; behind its end nothing happens",
            Severity.WARNING,
        )


def _last(scheduler: Event) -> str:
    return str(scheduler.get("cls", "")).rpartition(".")[2]


def _raises(cls: str) -> str:
    """The error of a scheduler's next step; "" where it takes the group."""
    last = cls.rpartition(".")[2]
    if cls.startswith("transformers.") and last.startswith("get_") and "plateau" not in last:
        return _RAISES["LambdaLR"] if last != "get_scheduler" else ""
    return _RAISES.get(last, "") if cls.startswith(_TORCH) else ""


def _found(added: Event, scheduler: Event, message: str, why: str, severity: Severity) -> Violation:
    node = added.node
    assert isinstance(node, ast.AST)
    place = scheduler.origin or f"line {scheduler.line}"
    return Violation(
        node,
        message,
        evidence=(f"{place}: {scheduler.path or 'a scheduler'} was made for the groups that there were", why),
        remedy="give the group to the optimizer from the start, frozen; or make the scheduler anew after adding it",
        severity=severity,
    )


RULE = LintRule(
    code="S451",
    what="Looks for `add_param_group` on an optimizer whose scheduler was made before, where that scheduler cannot "
    "take another group: `LambdaLR`, `MultiplicativeLR`, `CyclicLR`, `OneCycleLR`, `CosineAnnealingWarmRestarts` and "
    "`SequentialLR` raise, `LinearLR` and `ConstantLR` overshoot in their warm-up.",
    why="A scheduler knows the groups that there were. A later one makes its next step raise, or is multiplied by "
    "what is left of a warm-up: asked for 0.01, it ends at 0.036.",
    example="optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.1)\n"
    "scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)\n"
    'optimizer.add_param_group({"params": model.layer4.parameters(), "lr": 0.01})',
    instead="optimizer = torch.optim.SGD(\n"
    '    [{"params": model.fc.parameters()}, {"params": model.layer4.parameters(), "lr": 0.01}], lr=0.1\n)\n'
    "scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch)",
    remedy="Have all groups in the optimizer from the start: what is frozen is passed over. Or make the scheduler "
    "anew.",
    safety=Safety.MANUAL,
    how_safe="manual: the rates of all groups can become other ones",
    false_alarms="A group that comes when the warm-up of `LinearLR` or `ConstantLR` is over. Schedulers that "
    "multiply the rate of the day (`StepLR`, `ExponentialLR`, cosine) follow a new group and are silent, and so is a "
    "scheduler that is made anew afterwards.",
    source="pytorch#79888, pytorch#104361, transformers#20029, Lightning#12141, lightning-flash#1321",
    triggers=("add_param_group",),
    check=check,
)
