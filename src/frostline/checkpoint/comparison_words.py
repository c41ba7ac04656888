"""What a comparison of two checkpoints says of its rows, in words.

Knows rows and names; which rows belong together is told by `comparison`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from frostline.checkpoint.compared_row import BESIDE, COMPARED, ORDER, STATISTICS, Row, count_beside
from frostline.errors import name_some
from frostline.state.changes import grouped, largest
from frostline.state.names import fold, name_folded

# How to see all of what is named in part.
_REST = "moved, --json"


def say_drifted(rows: Sequence[Row], *, is_cause_known: bool) -> str:
    """What of parts whose statistics moved, and nothing else; with the cause, where all of them was compared."""
    moved = {row.role_class for row in rows if row.change == "changed"}
    what = "norm statistics" if "norm statistics" in moved else "norm counters"
    figures = _say_classes([row for row in rows if row.role_class in STATISTICS], STATISTICS)
    others = [row for row in rows if row.role_class not in STATISTICS]
    if not any(row.change in COMPARED for row in others):
        return f"{what} moved ({figures})" if others else f"nothing but statistics, which moved: {figures}"
    if any(row.change in BESIDE for row in others):
        return f"weights and biases that are in both equal to the bit, {what} moved ({figures})"
    cause = "frozen by requires_grad alone" if is_cause_known else "nothing was trained, so train mode or recalibration"
    return f"weights and biases equal to the bit, {what} moved ({figures}): {cause}"


def is_training(row: Row) -> bool:
    """Whether a row shows that something was trained or put in, beyond statistics."""
    return row.role_class not in STATISTICS and row.change in {"changed", "added", "reshaped"}


def say_untouched(rows: Sequence[Row]) -> str:
    """What of parts of which nothing that was compared differs."""
    compared, alike = (sum(row.change == change for row in rows) for change in ("same", "alike"))
    if alike:
        return f"alike in shape and dtype, values not compared ({count_tensors(alike)})"
    return f"equal to the bit ({count_tensors(compared)})"


def say_trained(rows: Sequence[Row]) -> str:
    """What of parts whose weights or biases differ."""
    return f"trained ({_say_classes(rows, ORDER)})"


def say_beside(rows: Sequence[Row]) -> str:
    """How many tensors of parts were not compared, behind what is said of the others."""
    said = say_counts(count_beside(rows))
    return f"; not compared: {said}" if said else ""


def _say_classes(rows: Sequence[Row], classes: Sequence[str]) -> str:
    by_class = grouped((row for row in rows if row.change in COMPARED), lambda row: row.role_class)
    said: list[str] = []
    for role_class in classes:
        members = by_class.get(role_class, [])
        changed = [row for row in members if row.change == "changed"]
        if members:
            # NaNs have a line of their own, and would hide how far the others moved.
            size = largest(row.max_abs for row in changed if row.max_abs is None or not math.isnan(row.max_abs))
            far = "" if size is None else f" by up to {size:.3g}"
            said.append(f"{len(changed):,} of {len(members):,} {role_class}{far}")
    return ", ".join(said)


def say_nans(rows: Sequence[Row]) -> list[str]:
    """Lines for the NaNs that came and those that went."""
    lines: list[str] = []
    for title, count in (("NaN", lambda row: row.nans_gained), ("NaN before, a number now", lambda row: row.nans_lost)):
        found = [row for row in rows if count(row)]
        if found:
            total = sum(map(count, found))
            lines.append(f"{title}: {name_rows(found)}, {total:,} value{'s' * (total != 1)}")
    return lines


def say_reshaped(rows: Sequence[Row]) -> list[str]:
    """A line for the tensors of another shape, with both shapes."""
    found = grouped((row for row in rows if row.change == "reshaped"), lambda row: (_kind(row, 0), _kind(row, 1)))
    named = [
        f"{folded} {before} → {after}"
        for (before, after), members in found.items()
        for folded in fold([row.path for row in members])
    ]
    count = count_tensors(sum(map(len, found.values())))
    return [f"reshaped: {count}: {name_some(named, rest=_REST)}"] if named else []


def say_retyped(rows: Sequence[Row]) -> list[str]:
    """Lines for the tensors of another dtype."""
    found = grouped((row for row in rows if row.change == "retyped"), lambda row: (row.dtype_before, row.dtype_after))
    return [
        f"retyped: {count_tensors(len(members))}, {before} → {after}: {name_rows(members)}"
        for (before, after), members in found.items()
    ]


def _kind(row: Row, side: int) -> str:
    """The shape before or after; with the dtype, where that differs too."""
    shape = (row.shape_before, row.shape_after)[side] or ()
    dtype = (row.dtype_before, row.dtype_after)[side]
    return f"{shape}" if row.dtype_before == row.dtype_after else f"{shape} {dtype}"


def name_rows(rows: Sequence[Row]) -> str:
    """The names of some rows, like ones together."""
    return name_folded([row.path for row in rows], rest=_REST)


def say_counts(counts: Mapping[str, int]) -> str:
    """Counts that are not zero, with what they count."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def count_tensors(tensors: int) -> str:
    """A number of tensors."""
    return f"{tensors:,} tensor" + "s" * (tensors != 1)
