"""F115: a filter by name matches everything or nothing."""

from __future__ import annotations

from collections.abc import Iterator

from frostline.audit.seen import Seen
from frostline.doctor.name_filters import Filter, name_filters
from frostline.doctor.odd_attributes import starts_trainable
from frostline.doctor.rule import Found, Rule
from frostline.doctor.telling import counted
from frostline.findings import Safety, Severity


def look(seen: Seen) -> Iterator[Found]:
    """Filters that matched no parameter, or all, where the flags are still so as if there were no filter."""
    for one in name_filters(seen):
        if not one.walked:
            continue
        trainable = [t for t in one.walked if starts_trainable(t, one.model)]
        nothing, everything = not one.matched, len(one.matched) == len(one.walked)
        # Its effect is what counts: another line may have done what this one did not.
        as_if_none = len(trainable) == (len(one.walked) if one.value is False else 0)
        as_if_all = len(trainable) == (0 if one.value is False else len(one.walked))
        if nothing and as_if_none and one.literal:
            yield _found(seen, one, len(trainable), all_of_them=False)
        elif (
            everything and as_if_all and (one.always or (one.literal and len(one.walked) == len(one.model.parameters)))
        ):
            yield _found(seen, one, len(trainable), all_of_them=True)


def _found(seen: Seen, one: Filter, trainable: int, *, all_of_them: bool) -> Found:
    count = counted(len(one.walked), "parameter")
    matches = "every one" if all_of_them else "none"
    paths = [t.path for t in one.walked]
    evidence = ["the names are " + (", ".join(paths) if len(paths) < 5 else f"{', '.join(paths[:3])} ... {paths[-1]}")]
    if one.always:
        evidence.insert(0, f"{one.always} alone is true: `or` binds weaker than `in`")
    elif not all_of_them:
        evidence.insert(0, f"no flag was set to {one.value} on the lines below it")
    whole = len(one.walked) == len(one.model.parameters)
    rest = one.model.name if whole else "that part"
    outcome = "nothing is frozen" if trainable else f"nothing of {rest} trains"
    evidence.append(f"{trainable} of {count} of {rest} can train")
    if seen.crash is not None and not trainable and "does not require grad" in seen.crash.text:
        evidence.append(f"{seen.crash.place}: {seen.crash.type}: {seen.crash.text}")
    return Found(
        message=f"{one.test} matches {matches} of {count}: {outcome}",
        model=one.model.name,
        paths=tuple(paths),
        evidence=tuple(evidence),
        remedy=_remedy(one),
        severity=Severity.ERROR,
        safety=Safety.MANUAL,
        place=one.place,
        inferred=True,
    )


def _remedy(one: Filter) -> str:
    if one.always:
        return f"any(part in name for part in ({one.always}, ...))"
    name = f"frostline.freeze({one.model.name}, ...)"
    return f"compare with the names that the model has; {name} refuses a pattern that matches nothing"


def sound(seen: Seen) -> str | None:
    """How many filters matched some and not all."""
    good = [one for one in name_filters(seen) if 0 < len(one.matched) < len(one.walked)]
    if not good:
        return None
    return f"{counted(len(good), 'filter')} by name matched some parameters, and not all"


RULE = Rule(
    code="F115",
    what="Finds, in the source of the files that ran, conditions on the name in loops that write `requires_grad`, "
    "and counts the parameters that they matched.",
    why="A wrong prefix matches nothing and freezes nothing. `'bn' or 'norm' in name` is always true and freezes "
    "all. Either way the loop runs.",
    evidence="The condition, the names of the model, how many flags were written below it, and how many parameters "
    "can train; from the first training step on.",
    example='for name, p in model.named_parameters():\n    if "bn" or "norm" in name:\n        p.requires_grad = False',
    instead='for name, p in model.named_parameters():\n    if "bn" in name or "norm" in name:\n        '
    "p.requires_grad = False",
    remedy="Compare with the names that the model has; `frostline.freeze` refuses a pattern that matches nothing.",
    safety=Safety.MANUAL,
    how_safe="manual: what was to be matched is not known",
    false_alarms="A script for several models whose filter does not apply to this one: give it an empty list of "
    "names then. A list of names that is empty, or not written in the source, is never reported; neither is a filter "
    "that another line makes up for.",
    source="TrainCheck 84911",
    look=look,
    sound=sound,
    explains=("F108", "F106", "O413", "O403"),
)
