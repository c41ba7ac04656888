"""D801: requires_grad is changed after the model was wrapped for distributed training."""

from __future__ import annotations

import re
from collections.abc import Iterator

from frostline.findings import Safety, Severity
from frostline.lint.events import Event, Flow
from frostline.lint.file_view import FileView
from frostline.lint.frozen_parts import shown
from frostline.lint.rule import LintRule, Violation
from frostline.lint.values import owner_of
from frostline.lint.wrapping import Wrapping, trains_after, wrappings

_THAWS = re.compile(r"unfreez|thaw|release", re.I)


def check(view: FileView) -> Iterator[Violation]:
    """Flags of parameters inside of a wrapper that become others than they were when it was made."""
    for flow in view.flows:
        for wrapping in wrappings(flow):
            for index, event in wrapping.later():
                if event.what == "flag" and event.node is not None:
                    yield from _violation(flow, wrapping, index, event)


def _violation(flow: Flow, wrapping: Wrapping, index: int, event: Event) -> Iterator[Violation]:
    part = wrapping.inside(event.path)
    if part is None or wrapping.is_redone(index) or _is_toggled(wrapping, event):
        return
    trains = trains_after(flow, index)
    if trains is False:
        return
    value = event.get("value")
    if value is False:
        if wrapping.event.get("options", {}).get("find_unused_parameters") is True:
            return  # it is not waited for then
        if not part and event.whole:
            return  # a teacher: no gradient, nothing to wait for
    elif (
        not _was_frozen(wrapping, event) and not event.conditions and not _THAWS.search(f"{event.function} {event.via}")
    ):
        return  # it was on already
    wrapped = wrapping.event
    name = shown(owner_of(event.path)) or "a parameter"
    did = "frozen" if value is False else "made trainable" if value is True else "frozen or thawed"
    becomes = (
        "the next pass fails, because its gradients are waited for"
        if value is False
        else "its gradients are never averaged"
    )
    sure = trains is True and isinstance(value, bool)
    yield Violation(
        event.node,  # type: ignore[arg-type]
        f"{name} is {did} after the model was wrapped: {becomes}",
        evidence=(
            f"line {wrapped.line} wraps {shown(wrapped.get('of')) or 'the model'} as {shown(wrapping.wrapper)}",
            f"{event.origin or f'line {event.line}'} sets requires_grad of {shown(event.path) or 'its parameters'}",
        ),
        remedy=f"set the flags before line {wrapped.line}, and wrap anew where they change during training",
        severity=Severity.ERROR if sure else Severity.WARNING,
        inferred=not sure,
    )


def _is_toggled(wrapping: Wrapping, event: Event) -> bool:
    """Whether the same parameters get the other value in the same place: a discriminator that waits its turn."""
    value = event.get("value")
    around = [loop.key for loop in event.loops if loop.is_over_data]
    return any(
        other.what == "flag"
        and other.path == event.path
        and other.get("value") is (not value)
        and other.conditions == event.conditions
        and around
        and [loop.key for loop in other.loops if loop.is_over_data] == around
        for other in wrapping.flow.events
    )


def _was_frozen(wrapping: Wrapping, event: Event) -> bool:
    """Whether some of these parameters were frozen when the wrapper was made, as far as the flow tells."""
    part = wrapping.inside(event.path) or ""
    for other in wrapping.flow.events[: wrapping.index]:
        before = wrapping.inside(other.path) if other.what == "flag" and other.get("value") is not True else None
        if before is not None and (before.startswith(part) or part.startswith(before)):
            return True
    return False


RULE = LintRule(
    code="D801",
    what="Looks for `requires_grad` of parameters inside of a model that was wrapped in "
    "`DistributedDataParallel` before, in the same piece of code or in what it calls, where training goes "
    "on without wrapping anew.",
    why="The wrapper decides once, when it is made, which gradients it averages. What becomes trainable later "
    "gets a gradient in each process and never an average: the copies drift apart without an error, and "
    "the file that is saved is one of them. What is frozen later is waited for, and the next pass fails.",
    example="net.backbone.requires_grad_(False)\nmodel = torch.nn.parallel.DistributedDataParallel(net)\n"
    "for epoch in range(epochs):\n    if epoch == 5:\n        net.backbone.requires_grad_(True)\n"
    "    for x, y in loader:\n        optimizer.zero_grad()\n        criterion(model(x), y).backward()\n"
    "        optimizer.step()",
    instead="net.backbone.requires_grad_(False)\nmodel = torch.nn.parallel.DistributedDataParallel(net)\n"
    "for epoch in range(epochs):\n    if epoch == 5:\n        net.backbone.requires_grad_(True)\n"
    "        model = torch.nn.parallel.DistributedDataParallel(net)\n    for x, y in loader:\n"
    "        optimizer.zero_grad()\n        criterion(model(x), y).backward()\n        optimizer.step()",
    remedy="Set the flags first and wrap then; wrap anew when they change.",
    safety=Safety.MANUAL,
    how_safe="manual: a new wrapper broadcasts the parameters of the first process to all, so the place matters",
    false_alarms="A part that each process trains on its own, on purpose. Let be are: a discriminator that is switched "
    "off and on in the same loop, a whole wrapped model that is frozen (a teacher), freezing with "
    "`find_unused_parameters=True`, flags that only repeat what was so before, and those behind the last "
    "training step.",
    source="pytorch#22049, transformers#416, ClassyVision PR398, Lightning#20340",
    triggers=("DistributedDataParallel", "DDP", "requires_grad"),
    check=check,
)
