"""C505: loading the optimizer overwrote hyperparameters that were just set."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from math import nan

from frostline.audit.events import OptimizerLoad, SchedulerLoad, SchedulerMade, SchedulerStep, Step
from frostline.audit.places import Place
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted
from frostline.findings import Safety, Severity

# How an optimizer computes, not what; and what a scheduler keeps for itself.
_NO_MATTER = frozenset({"foreach", "fused", "capturable", "differentiable", "initial_lr", "max_lr", "min_lr", "step"})
# What a scheduler moves, besides what it keeps for itself.
_SCHEDULED = frozenset({"lr", "momentum"})
# A setting is written by hand somewhere: `group["lr"] = ...`.
_BY_HAND = re.compile(r"""\[\s*['"](\w+)['"]\s*\]\s*[-+*/]?=(?!=)""")


def look(seen: Seen) -> Iterator[Found]:
    """Hyperparameters that a load changed and that were still as loaded at the next step; one finding for each line."""
    told: set[tuple[str, Place]] = set()
    for load in seen.of(OptimizerLoad):
        site = (load.optimizer, load.place)
        lost = [] if load.error else _lost(load, seen)
        if not lost or site in told:
            continue
        told.add(site)
        names = list(dict.fromkeys(name for _, name, _, _ in lost))
        groups = {group for group, _, _, _ in lost}
        evidence = [
            f"group {group}: {name} was {before:g} before the load, {after:g} after it"
            for group, name, before, after in lost[:4]
        ]
        if len(lost) > 4:
            evidence.append(f"and {len(lost) - 4} more")
        evidence.append("an optimizer's state holds its hyperparameters too, and they replace those of the constructor")
        yield Found(
            message=f"loading {load.optimizer} replaced {', '.join(names)} of {counted(len(groups), 'group')} "
            "by the stored " + ("value" if len(lost) == 1 else "values"),
            evidence=tuple(evidence),
            remedy="; ".join(
                f'{load.optimizer}.param_groups[{group}]["{name}"] = {before:g}' for group, name, before, _ in lost[:3]
            )
            + f", after {load.optimizer}.load_state_dict",
            severity=Severity.INFO if _written_by_hand(seen).issuperset(names) else Severity.WARNING,
            safety=Safety.UNSAFE,
            place=load.place,
        )


def _lost(load: OptimizerLoad, seen: Seen) -> list[tuple[int, str, float, float]]:
    """Group, name, value before and after, of what a load changed and nobody meant or mended."""
    scheduled = _is_scheduled(load, seen)
    steps = seen.of(Step, lambda e: e.optimizer == load.optimizer and e.at > load.at)
    lost: list[tuple[int, str, float, float]] = []
    for group, (before, after) in enumerate(zip(load.before, load.after, strict=False)):
        for name in before:
            if name in _NO_MATTER or name not in after or _same(before[name], after[name]):
                continue
            if name in _SCHEDULED and scheduled:
                continue
            if name == "lr" and (not steps or not _same(_rate(steps[0], group), after[name])):
                continue
            if name != "lr" and _same(_at_the_end(load.optimizer, group, name, seen), before[name]):
                continue
            lost.append((group, name, before[name], after[name]))
    return lost


def _same(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= 1e-9 * max(abs(one), abs(other))


def _rate(step: Step, group: int) -> float:
    return step.rates[group] if group < len(step.rates) else nan


def _at_the_end(optimizer: str, group: int, name: str, seen: Seen) -> float:
    found = seen.optimizer(optimizer)
    return found.groups[group].settings.get(name, nan) if found and group < len(found.groups) else nan


def _is_scheduled(load: OptimizerLoad, seen: Seen) -> bool:
    """Whether a scheduler has the rate in its hands: then the stored rate is the one that it had got to."""
    made = seen.of(SchedulerMade, lambda e: e.optimizer == load.optimizer)
    stepped = seen.of(SchedulerStep, lambda e: e.optimizer == load.optimizer)
    optimizer = seen.optimizer(load.optimizer)
    return bool(made or stepped or seen.of(SchedulerLoad) or (optimizer and optimizer.schedulers))


def _written_by_hand(seen: Seen) -> set[str]:
    """The settings that the user's own files assign to in some group."""
    return {name for file in seen.sources for line in linecache.getlines(file) for name in _BY_HAND.findall(line)}


def sound(seen: Seen) -> str | None:
    """How many optimizers were loaded and kept what they were made with."""
    loads = [load for load in seen.of(OptimizerLoad) if not load.error]
    if not loads or any(_lost(load, seen) for load in loads):
        return None
    return f"{counted(len(loads), 'optimizer')} kept the hyperparameters that were meant after loading a state"


RULE = Rule(
    code="C505",
    what="Compares the hyperparameters of every parameter group before and after an optimizer's `load_state_dict`, "
    "and the rate with that of the next step.",
    why="`load_state_dict` brings the stored learning rate, weight decay and momentum along. Whoever makes an "
    "optimizer with a smaller rate for fine-tuning and then loads its state trains with the old rate; the "
    "constructor's arguments, and the log of the run, say otherwise.",
    evidence="Each value before and after; at the load itself, and for the rate at the first step after it.",
    example="optimizer = AdamW(model.parameters(), lr=1e-5)\n"
    'optimizer.load_state_dict(checkpoint["optimizer"])  # lr is 1e-3 again',
    instead='optimizer.load_state_dict(checkpoint["optimizer"])\n'
    'for group in optimizer.param_groups:\n    group["lr"] = 1e-5',
    remedy="Set what should differ after loading, or do not load the state when a new phase begins.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: which of the two values is meant is known to you only; resuming wants the stored one",
    false_alarms="Resuming a run whose constructor was given other values than those that it had come to. Where a "
    "scheduler has the rate in its hands, it is not compared; where a script writes the setting of a group itself "
    "(`group['lr'] = ...`), it is information only. Otherwise make the optimizer with the stored values.",
    source="none found",
    look=look,
    sound=sound,
)
