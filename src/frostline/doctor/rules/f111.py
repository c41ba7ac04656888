"""F111: a learning rate of 0 was taken for freezing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from frostline.audit.events import GroupAdded, SchedulerMade, SchedulerStep
from frostline.audit.places import Place
from frostline.audit.seen import GroupSeen, ModelSeen, OptimizerSeen, Seen, TensorSeen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import biggest, counted, drift_of, parts_of, quoted, some
from frostline.findings import Safety, Severity


@dataclass(frozen=True)
class _Idle:
    """A group that was given the rate 0 beside others that were not."""

    optimizer: OptimizerSeen
    number: int
    group: GroupSeen


def look(seen: Seen) -> Iterator[Found]:
    """Groups made with the rate 0, beside others, whose rate a scheduler raised, or whose statistics moved."""
    for idle in _idle(seen):
        by_model: dict[str, list[str]] = {}
        for model, path in idle.group.paths:
            by_model.setdefault(model, []).append(path)
        for name, paths in by_model.items():
            model = seen.model(name)
            if model is None:
                continue
            tensors = [model.tensors[path] for path in paths if path in model.tensors]
            raised = _raised(idle, seen)
            if raised is not None and any(t.moved_in_step for t in tensors):
                yield _by_schedule(idle, model, tensors, raised)
            elif not any(idle.group.first_rates) and (moved := _statistics(model, tensors)):
                yield _by_statistics(idle, seen, model, tensors, moved)


def _idle(seen: Seen) -> Iterator[_Idle]:
    for optimizer in seen.optimizers:
        base = [_base_rate(optimizer.name, i, group, seen) for i, group in enumerate(optimizer.groups)]
        for i, group in enumerate(optimizer.groups):
            if base[i] == 0.0 and any(base) and optimizer.steps and group.paths:
                yield _Idle(optimizer, i, group)


def _base_rate(optimizer: str, number: int, group: GroupSeen, seen: Seen) -> float | None:
    """The rate that the user gave it: a warm-up may begin at 0, and is not meant."""
    made = seen.of(GroupAdded, lambda e: e.optimizer == optimizer and e.group == number)
    if made:
        return made[0].rate
    if "initial_lr" in group.settings:
        return group.settings["initial_lr"]
    return group.first_rates[0] if group.first_rates else None


def _raised(idle: _Idle, seen: Seen) -> tuple[Place, str, float] | None:
    """Where a scheduler raised the rate, its name, and how high; by hand it is meant."""
    rates = idle.group.first_rates
    top = max(rates, default=0.0)
    if top <= 0.0:
        return None
    name, number = idle.optimizer.name, idle.number
    for event in seen.of(SchedulerStep, lambda e: e.optimizer == name):
        if len(event.after) > number and event.before[number] == 0.0 < event.after[number]:
            return event.place, event.scheduler, top
    if rates[0] > 0.0 and (made := seen.of(SchedulerMade, lambda e: e.optimizer == name and e.groups > number)):
        return made[0].place, made[0].scheduler, top
    return None


def _statistics(model: ModelSeen, tensors: list[TensorSeen]) -> list[TensorSeen]:
    modules = {t.module for t in tensors}
    return [t for t in model.buffers if t.module in modules and t.role.startswith("norm.") and t.moved]


def _by_schedule(idle: _Idle, model: ModelSeen, tensors: list[TensorSeen], raised: tuple[Place, str, float]) -> Found:
    place, scheduler, top = raised
    moved = [t for t in tensors if t.moved_in_step]
    first = next(i for i, rate in enumerate(idle.group.first_rates) if rate > 0)
    parts = parts_of([t.path for t in tensors], model)
    return Found(
        message=f"group {idle.number} was given the rate 0 to freeze {counted(len(tensors), 'parameter')}, and "
        f"{scheduler} raised it to {top:.3g}",
        model=model.name,
        paths=tuple(t.path for t in moved),
        evidence=(
            f"group {idle.number} of {idle.optimizer.name} ({some(parts)}): made with lr=0, more from step {first} on",
            f"{scheduler} sets the rate of every group",
            f"{counted(len(moved), 'parameter')} changed in {counted(idle.optimizer.steps, 'step')}",
        ),
        remedy=_remedy(model, parts, idle),
        severity=Severity.ERROR,
        safety=Safety.UNSAFE,
        place=place,
        inferred=True,
    )


def _by_statistics(
    idle: _Idle, seen: Seen, model: ModelSeen, tensors: list[TensorSeen], moved: list[TensorSeen]
) -> Found:
    layers = {t.module for t in moved}
    parts = parts_of([t.path for t in tensors], model)
    made = seen.of(GroupAdded, lambda e: e.optimizer == idle.optimizer.name and e.group == idle.number)
    evidence = [f"group {idle.number} of {idle.optimizer.name} ({some(parts)}): lr=0 in every step, no parameter moved"]
    far = biggest(moved)
    evidence.append(
        f"{far.path}: {drift_of(far, seen)}; a rate says nothing about statistics, which move in train mode"
    )
    return Found(
        message=f"group {idle.number} has the rate 0, but {counted(len(layers), 'normalization layer')} of it moved "
        f"{'its' if len(layers) == 1 else 'their'} statistics",
        model=model.name,
        paths=tuple(t.path for t in moved),
        evidence=tuple(evidence),
        remedy=_remedy(model, parts, idle),
        severity=Severity.WARNING,
        safety=Safety.UNSAFE,
        place=made[0].place if made else idle.optimizer.made if idle.optimizer.made.is_known else None,
        inferred=True,
    )


def _remedy(model: ModelSeen, parts: tuple[str, ...], idle: _Idle) -> str:
    return f"frostline.freeze({model.name}, {quoted(parts)}, optimizer={idle.optimizer.name})"


def sound(seen: Seen) -> str | None:
    """How many groups were given the rate 0 and kept it."""
    kept = [idle for idle in _idle(seen) if not any(idle.group.first_rates)]
    return f"{counted(len(kept), 'parameter group')} made with the rate 0 kept it" if kept else None


RULE = Rule(
    code="F111",
    what="Looks for parameter groups that were made with the rate 0 beside groups that were not, and follows their "
    "rates and the statistics of their normalization layers.",
    why="Schedulers compute the rate of every group: `CosineAnnealingLR(eta_min=...)`, `OneCycleLR` and `CyclicLR` "
    "lift a 0, and the part trains. Where the rate stays 0, train mode still moves running statistics.",
    evidence="The rate that the group was given and its rates step by step, the line of the scheduler, the "
    "parameters or statistics that moved; from the first step at which the rate is above 0.",
    example='optimizer = SGD([{"params": trunk.parameters(), "lr": 0.0}, {"params": head.parameters()}], lr=0.1)\n'
    "scheduler = CosineAnnealingLR(optimizer, 100, eta_min=1e-3)",
    instead='frostline.freeze(model, "trunk")\noptimizer = SGD(head.parameters(), lr=0.1)\nscheduler = '
    "CosineAnnealingLR(optimizer, 100, eta_min=1e-3)",
    remedy="Freeze the part with `frostline.freeze` and leave it out of the optimizer.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: a group that is to train later may begin at the rate 0",
    false_alarms="A group that is meant to be woken by the scheduler. A warm-up that begins at 0 is told from it by "
    "the rate that the group was given, and a rate that is set by hand is taken to be meant.",
    source="advice in Lightning#20340",
    look=look,
    sound=sound,
    explains=("F107", "F106"),
)
