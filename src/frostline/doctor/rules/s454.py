"""S454: a checkpoint's optimizer has another number of parameter groups."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.events import GroupAdded, OptimizerLoad
from frostline.audit.seen import Seen
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import at, counted
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Loads of an optimizer's state that torch refused because groups, or the parameters in one, differ in number."""
    for load in seen.of(OptimizerLoad, lambda e: "parameter group" in e.error):
        mended = seen.of(OptimizerLoad, lambda e, o=load: e.optimizer == o.optimizer and e.at > o.at and not e.error)
        optimizer = seen.optimizer(load.optimizer)
        if mended or optimizer is None:
            continue
        have = _sizes(load, seen)
        groups = len(load.given) != len(have)
        evidence = [
            f"in the checkpoint: {_told(load.given)}",
            f"in {load.optimizer}: {_told(have)}"
            + (f"; made at {at(optimizer.made)}" if optimizer.made.is_known else ""),
            load.error,
        ]
        yield Found(
            message=f"the checkpoint's optimizer has {counted(len(load.given), 'parameter group')}, {load.optimizer} "
            f"has {len(have)}: its state was not loaded"
            if groups
            else f"the groups of the checkpoint's optimizer have other numbers of parameters than those of "
            f"{load.optimizer}: its state was not loaded",
            evidence=tuple(evidence),
            remedy=f"add the groups of the saved run to {load.optimizer} in the same order, then load"
            if groups and len(load.given) > len(have)
            else f"make {load.optimizer} with the groups of the saved run, load, and add the new ones after it",
            severity=Severity.ERROR,
            safety=Safety.UNSAFE,
            place=load.place,
        )


def _sizes(load: OptimizerLoad, seen: Seen) -> tuple[int, ...]:
    """How many parameters each group of the optimizer had when the state came."""
    added = seen.of(GroupAdded, lambda e: e.optimizer == load.optimizer and e.at < load.at)
    sizes = tuple(len(event.paths) for event in added[-len(load.before) :])
    optimizer = seen.optimizer(load.optimizer)
    if len(sizes) < len(load.before) and optimizer is not None:
        sizes = tuple(len(group.paths) for group in optimizer.groups[: len(load.before)])
    return sizes


def _told(sizes: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, sizes[:8])) + (", ..." if len(sizes) > 8 else "")
    return f"{counted(len(sizes), 'group')} of {shown} parameters" if sizes else "no group"


def sound(seen: Seen) -> str | None:
    """How many states fitted."""
    loads = seen.of(OptimizerLoad)
    if not loads or any(load.error for load in loads):
        return None
    return f"{counted(len(loads), 'optimizer state')} had the groups of the optimizer"


RULE = Rule(
    code="S454",
    what="Looks at every `optimizer.load_state_dict` that torch refused because the number of groups, or of "
    "parameters in one, differs.",
    why="A run that unfreezes with `add_param_group` saves an optimizer with more groups than the script makes at its "
    "start. Resuming raises `ValueError: loaded state dict has a different number of parameter groups`; where that is "
    "caught, the run goes on with an empty state.",
    evidence="The groups on both sides with their numbers of parameters, and the line; at the call.",
    example="optimizer = torch.optim.Adam(model.head.parameters())\n"
    'optimizer.load_state_dict(checkpoint["optimizer"])  # saved after the trunk had become a second group',
    instead="optimizer = torch.optim.Adam(model.head.parameters())\n"
    'optimizer.add_param_group({"params": model.trunk.parameters(), "lr": 1e-5})\n'
    'optimizer.load_state_dict(checkpoint["optimizer"])',
    remedy="Make the same groups in the same order before loading; or have all groups from the start, frozen ones "
    "too, so that their number never changes.",
    safety=Safety.UNSAFE,
    how_safe="unsafe: it edits how the optimizer is made",
    false_alarms="A load that is tried, caught, and done again with the right groups is not reported.",
    source="Lightning#6891, Lightning#8502",
    look=look,
    sound=sound,
)
