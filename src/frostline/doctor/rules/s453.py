"""S453: the learning rate jumps on resuming: the scheduler's state was not loaded."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import OptimizerLoad, Save, SchedulerLoad, SchedulerMade, SchedulerStep, Step
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.findings import Safety, Severity

# Between two steps a schedule may change a rate a little; more than this it changes by starting anew.
_JUMP = 1.5


def look(seen: Seen) -> Iterator[Found]:
    """Optimizers whose state came from a run in mid-schedule, under a scheduler that begins from its beginning."""
    for load in seen.of(OptimizerLoad, lambda e: not e.error):
        later_load = seen.of(
            OptimizerLoad, lambda e, o=load: e.optimizer == o.optimizer and e.at > o.at and not e.error
        )
        scheduler = _fresh_scheduler(load, seen)
        if later_load or scheduler is None or not _was_scheduled(load):
            continue
        steps = seen.of(Step, lambda e, o=load: e.optimizer == o.optimizer and e.at > o.at)
        if not steps:
            continue
        rates = [step.rates[0] for step in steps if step.rates]
        loaded, initial = load.after[0]["lr"], load.after[0]["initial_lr"]
        jump = next((rate for rate in rates if rate and loaded and not 1 / _JUMP < rate / loaded < _JUMP), None)
        evidence = [
            f"rate {loaded:.3g}, of a schedule that began at {initial:.3g}, came at {at(load.place)}",
            f"no state was loaded into {scheduler}, which begins anew",
        ]
        if jump is not None:
            number, times = rates.index(jump) + 1, jump / loaded
            evidence.append(f"rate of step {number} after loading: {jump:.3g}, {times:.3g} times the one loaded")
        saves = seen.of(Save, lambda e, o=load: e.at < o.at and "optimizer" in e.states and "scheduler" not in e.states)
        if saves:
            evidence.append(f"it was saved without one at {at(saves[-1].place)}")
        yield Found(
            message=f"resumed without the state of {scheduler}: "
            + (
                f"the rate jumps from {loaded:.3g} to {jump:.3g}"
                if jump is not None
                else "the schedule starts from its beginning, in the middle of the run"
            ),
            evidence=tuple(evidence),
            remedy='scheduler.load_state_dict(checkpoint["scheduler"]) here, and its state_dict() into the checkpoint',
            severity=Severity.ERROR if jump is not None else Severity.WARNING,
            safety=Safety.UNSAFE,
            place=load.place,
        )


def _was_scheduled(load: OptimizerLoad) -> bool:
    """Whether the state that came is that of a run whose schedule had moved on."""
    return bool(load.after) and any(
        "initial_lr" in group and "lr" in group and group["lr"] != group["initial_lr"] for group in load.after[:1]
    )


def _fresh_scheduler(load: OptimizerLoad, seen: Seen) -> str | None:
    """A scheduler of the optimizer that begins at the beginning: neither loaded nor wound forward nor told where."""
    made = seen.of(SchedulerMade, lambda e: e.optimizer == load.optimizer)
    first_step = next((e.at for e in seen.of(Step, lambda e: e.at > load.at)), None)
    for event in reversed(made):
        if event.last_epoch not in {-1, 0}:
            continue  # told where to begin
        if seen.of(SchedulerLoad, lambda e, s=event: e.of == s.scheduler and e.at > s.at):
            continue
        own = seen.of(SchedulerStep, lambda e, s=event: e.scheduler == s.scheduler)
        wound = [e for e in own if first_step is not None and load.at < e.at < first_step]
        before = [e for e in own if e.at < load.at]
        # Steps before the load are those of the run that was saved, in the same program: it goes on.
        if own and not wound and not before:
            return event.scheduler
    return None


def sound(seen: Seen) -> str | None:
    """That schedulers were loaded with their optimizers."""
    loads = seen.of(OptimizerLoad, lambda e: not e.error and _was_scheduled(e))
    if not loads or not seen.of(SchedulerLoad) or any(True for _ in look(seen)):
        return None
    return f"{counted(len(loads), 'optimizer state')} in mid-schedule came with the state of the scheduler"


RULE = Rule(
    code="S453",
    what="Looks, after `optimizer.load_state_dict`, whether the state comes from the middle of a schedule, and "
    "whether the scheduler that goes on was given its state too.",
    why="The rate is in the optimizer's state, the position in the schedule is not. A scheduler that is not loaded "
    "begins from its beginning: the warm-up is run again, or a rate that had decayed jumps back to its start, and "
    "what was learned at the small rate is lost.",
    evidence="The rate that came, the one its schedule had begun with, the first rates after loading, and that no "
    "state was loaded into the scheduler; from the first step that differs on.",
    example='optimizer.load_state_dict(checkpoint["optimizer"])\nscheduler = LambdaLR(optimizer, warm_up)',
    instead='scheduler = LambdaLR(optimizer, warm_up)\noptimizer.load_state_dict(checkpoint["optimizer"])\n'
    'scheduler.load_state_dict(checkpoint["scheduler"])',
    remedy="Save and load `scheduler.state_dict()` (and that of a gradient scaler) with the optimizer's.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: later rates become other ones",
    false_alarms="A new schedule on purpose, on top of an old optimizer's momentum. Schedulers that are told where "
    "to begin (`last_epoch=`) or are wound forward by calling `step()` are not reported.",
    source="yolov5#292, pytorch#60265, the_well#77",
    look=look,
    sound=sound,
    explains=("C505",),
)
