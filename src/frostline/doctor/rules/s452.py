"""S452: the scheduler steps before the optimizer."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import Backward, SchedulerStep, Step
from frostline.audit.seen import OptimizerSeen, Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted
from frostline.findings import Safety, Severity

_TORCH_SAYS = "lr_scheduler.step()` before `optimizer.step()"


def look(seen: Seen) -> Iterator[Found]:
    """Schedulers whose first step came before any step of their optimizer, in a loop that goes on in this order."""
    told: set[str] = set()
    for first in seen.of(SchedulerStep, lambda e: e.own == 1 and e.steps_done == 0):
        optimizer = seen.optimizer(first.optimizer)
        if optimizer is None or optimizer.name in told or not optimizer.steps or not _is_the_beginning(optimizer, seen):
            continue
        order = _order(first, seen)
        if order is None:
            continue
        told.add(optimizer.name)
        steps = seen.of(Step, lambda e, o=optimizer: e.optimizer == o.name)
        begun, used = first.before, steps[0].rates
        evidence = [f"{first.scheduler} stepped {order}; at its first step {optimizer.name} had not stepped at all"]
        if begun != used:
            evidence.append(
                f"the first rate, {begun[0]:.3g}, was used for no step: the first step was done with {used[0]:.3g}"
            )
        if any(_TORCH_SAYS in text for text in seen.warnings):
            evidence.append("torch warned of it")
        yield Found(
            message=f"{first.scheduler} steps before {optimizer.name}: the first rate of the schedule is left out, "
            "and all later ones come one step too early",
            evidence=tuple(evidence),
            remedy=f"call it after {optimizer.name}.step(), at the end of the step or epoch",
            severity=Severity.WARNING,
            safety=Safety.UNSAFE,
            place=first.place,
        )


def _is_the_beginning(optimizer: OptimizerSeen, seen: Seen) -> bool:
    """Whether the optimizer cannot have stepped before the watch; torch knows, and warns, where it was made before."""
    return optimizer.made_at is not None or any(_TORCH_SAYS in text for text in seen.warnings)


def _order(first: SchedulerStep, seen: Seen) -> str | None:
    """Where the scheduler's steps stand in the loop, in words; ``None`` where they stand right."""
    marks = ""
    for event in seen.events:
        if isinstance(event, SchedulerStep) and event.scheduler == first.scheduler:
            marks += "s"
        elif isinstance(event, Step) and event.optimizer == first.optimizer:
            marks += "o"
        elif isinstance(event, Backward):
            marks += "b"
    if marks.startswith("ss"):
        return None  # a schedule that is wound forward to where a run was left
    if marks.startswith("s"):
        return "before the first backward pass"
    # Wrong is "bso". A gradient scaler that skips a step leaves "bsb", with the order right in the rest of the loop.
    early = marks.count("bso")
    return "between the backward pass and the optimizer's step" if early > marks.count("os") else None


def sound(seen: Seen) -> str | None:
    """How many schedulers stepped after their optimizers."""
    first = {e.scheduler: e for e in reversed(seen.of(SchedulerStep)) if seen.optimizer(e.optimizer) is not None}
    right = [name for name, event in first.items() if event.steps_done > 0]
    if not right or len(right) < len(first):
        return None
    return f"{counted(len(right), 'scheduler')} stepped after the optimizer"


RULE = Rule(
    code="S452",
    what="Looks whether the first step of a learning-rate scheduler comes before the first step of its optimizer, "
    "and in which order the loop goes on.",
    why="The first rate of the schedule is then never used, and every later one comes one step or epoch too early. A "
    "warm-up that should begin at a small rate begins higher; a schedule made before torch 1.1 in this order is off by "
    "one epoch.",
    evidence="The order of the calls, and the rate of the first step against the first of the schedule; from the first "
    "step on.",
    example="for epoch in range(epochs):\n    scheduler.step()\n    train_one_epoch(model, optimizer)",
    instead="for epoch in range(epochs):\n    train_one_epoch(model, optimizer)\n    scheduler.step()",
    remedy="Call `scheduler.step()` after `optimizer.step()`.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: every rate comes one step later",
    false_alarms="A schedule that is wound forward on resuming, and a gradient scaler that skips the first steps, "
    "are told from it and not reported, though torch warns of both. Where the optimizer was made before the watch, "
    "only what torch warns of is reported.",
    source="pytorch documentation, torch.optim, How to adjust learning rate",
    look=look,
    sound=sound,
)
