"""S451: a parameter group came after the scheduler and is scheduled wrongly."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import GroupAdded, SchedulerMade, SchedulerStep
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.findings import Safety, Severity

# A rate that rises this much above what was asked for it rises because it is rescaled, not because it was rounded.
_ABOVE = 1.01


def look(seen: Seen) -> Iterator[Found]:
    """Groups that came into an optimizer after its scheduler, and what became of their rates."""
    for added in seen.of(GroupAdded, lambda e: not e.constructed):
        scheduler = _scheduler_before(added, seen)
        if scheduler is None:
            continue
        steps = seen.of(
            SchedulerStep, lambda e, a=added: e.optimizer == a.optimizer and e.at > a.at and len(e.after) > a.group
        )
        # A scheduler that was made anew after the group knows it.
        made_later = seen.of(SchedulerMade, lambda e, a=added: e.optimizer == a.optimizer and e.at > a.at)
        if made_later:
            steps = [step for step in steps if step.at < made_later[0].at]
        what = _raised(seen) if not made_later else None
        what = what or _unscheduled(added, steps) or _too_high(added, steps)
        if what is None:
            continue
        message, evidence = what
        yield Found(
            message=f"group {added.group} came into {added.optimizer} after its {scheduler}: {message}",
            evidence=(
                f"{counted(len(added.paths), 'parameter')} at a rate of {added.rate:.3g}, added at {at(added.place)}",
                *evidence,
            ),
            remedy="give the group to the optimizer from the start, frozen; or make the scheduler anew after adding it",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=added.place,
        )


def _scheduler_before(added: GroupAdded, seen: Seen) -> str | None:
    """The scheduler that the optimizer had when the group came."""
    made = seen.of(SchedulerMade, lambda e: e.optimizer == added.optimizer)
    before = [event.scheduler for event in made if event.at < added.at]
    if before:
        return before[-1]
    # Made before the watch: it shows when it steps.
    stepped = seen.of(SchedulerStep, lambda e: e.optimizer == added.optimizer)
    known = {event.scheduler for event in made}
    old = [event.scheduler for event in stepped if event.scheduler not in known]
    return old[0] if old else None


def _raised(seen: Seen) -> tuple[str, list[str]] | None:
    """The step of a scheduler that cannot take another number of groups than it was made for."""
    crash = seen.crash
    if crash is None:
        return None
    by_count = crash.type == "ValueError" and ("zip()" in crash.text or "different lengths" in crash.text)
    by_key = crash.type == "KeyError" and any(key in crash.text for key in ("initial_lr", "max_lr", "base_lr"))
    if not by_count and not by_key:
        return None
    if ".step(" not in crash.place.text and "lr_scheduler" not in crash.traceback:
        return None
    return (
        "its next step raises",
        [f"{crash.type}: {crash.text}, raised at {at(crash.place)}"],
    )


def _unscheduled(added: GroupAdded, steps: list[SchedulerStep]) -> tuple[str, list[str]] | None:
    """The rates of the older groups change, that of the new one does not."""
    changed = [s for s in steps if any(a != b for a, b in zip(s.before, s.after, strict=True))]
    if not changed or any(s.before[added.group] != s.after[added.group] for s in changed):
        return None
    others = ", ".join(f"{rate:.3g}" for rate in changed[0].before[: added.group])
    ended = ", ".join(f"{rate:.3g}" for rate in changed[-1].after[: added.group])
    return (
        "its rate is not scheduled",
        [
            f"in {counted(len(changed), 'step')} of the scheduler the older groups went from {others} to {ended}",
            f"group {added.group} stayed at {changed[-1].after[added.group]:.3g}",
        ],
    )


def _too_high(added: GroupAdded, steps: list[SchedulerStep]) -> tuple[str, list[str]] | None:
    """A warm-up that was under way multiplies the new rate by what is left of it."""
    if not steps or not added.rate:
        return None
    peak = max(step.after[added.group] for step in steps)
    if peak <= added.rate * _ABOVE:
        return None
    # The others end where they were meant to; a schedule that raises all rates on purpose begins after the group came.
    at = next(step for step in steps if step.after[added.group] == peak)
    start, end = steps[0].before[0], at.after[0]
    return (
        f"its rate was to be {added.rate:.3g} and rose to {peak:.3g}",
        [
            f"the scheduler multiplies: group 0 went from {start:.3g} to {end:.3g}, a factor of {end / start:.3g}"
            if start
            else f"group 0 went to {end:.3g}",
            (
                f"so group {added.group} went from {added.rate:.3g} to {peak:.3g}, {peak / added.rate:.3g} times what "
                "was asked"
            ),
        ],
    )


def sound(seen: Seen) -> str | None:
    """How many groups came later and are scheduled as the others."""
    late = [e for e in seen.of(GroupAdded, lambda e: not e.constructed) if _scheduler_before(e, seen) is not None]
    if late and not any(True for _ in look(seen)):
        verb = "is" if len(late) == 1 else "are"
        return f"{counted(len(late), 'group')} that came after a scheduler {verb} scheduled as asked"
    made = seen.of(SchedulerMade)
    steps = seen.of(SchedulerStep)
    if made and steps and all(step.groups == len(step.after) for step in steps):
        schedulers = len({e.scheduler for e in steps})
        if schedulers > 1:
            return f"{schedulers:,} schedulers scale every group of their optimizers"
        return "1 scheduler scales every group of its optimizer"
    return None


RULE = Rule(
    code="S451",
    what="Follows the learning rate of every group that `add_param_group` adds after a scheduler was made.",
    why="A scheduler knows the groups that there were. A later one makes `LambdaLR`, `CyclicLR` and restarts raise, "
    "`OneCycleLR` fail with a KeyError, and is multiplied by what is left of a `LinearLR` warm-up: asked for 0.01, it "
    "ends at 0.036. Schedulers of one's own may leave it where it is.",
    evidence="The line that added the group, the rate it was given, and the rates of it and of the others after "
    "each step of the scheduler; from the first one on.",
    example="scheduler = LinearLR(optimizer, start_factor=0.1, total_iters=10)\n"
    "...\n"
    'optimizer.add_param_group({"params": model.layer4.parameters(), "lr": 0.01})  # in the warm-up',
    instead='groups = frostline.param_groups(model, 0.01, head="fc")  # layer4 in it from the start, frozen\n'
    "optimizer = torch.optim.SGD(groups)\n"
    "scheduler = LinearLR(optimizer, start_factor=0.1, total_iters=10)",
    remedy="Have all groups in the optimizer from the start: what is frozen is passed over. Or make the scheduler "
    "anew.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: the rates of all groups can become other ones",
    false_alarms="A group that is meant to keep its rate while the others are scheduled, or whose rate is meant to "
    "rise above the one it was added with. Groups that follow the schedule (StepLR, cosine) are not reported, nor "
    "is a scheduler that was made anew after the group.",
    source="pytorch#79888, pytorch#104361, transformers#20029, Lightning#12141, lightning-flash#1321",
    look=look,
    sound=sound,
)
