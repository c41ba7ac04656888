"""A name in two checkpoints, or in one: what became of it, and of which kind it is.

Knows rows; what they mean together is said by `comparison`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Roles by what a reader asks about. Counters stand apart: their differences are numbers of batches.
CLASSES: Mapping[str, str] = {
    "weight": "weights",
    "bias": "biases",
    "norm.weight": "norm weights",
    "norm.bias": "norm weights",
    "norm.mean": "norm statistics",
    "norm.var": "norm statistics",
    "norm.count": "norm counters",
}
OTHER = "other"
ORDER = (*dict.fromkeys(CLASSES.values()), OTHER)
STATISTICS = ("norm statistics", "norm counters")
COMPARED = frozenset({"same", "changed"})
PAIRED = COMPARED | {"alike"}
BESIDE = ("added", "removed", "reshaped", "retyped")


@dataclass(frozen=True)
class Row:
    """One name, in both checkpoints or in one.

    Attributes:
        path: the name.
        module: the path of its module.
        role: what it is for, told from names and shapes: ``weight``, ``bias``, ``norm.mean``, ``parameter`` ...
        change: ``same`` (equal to the bit), ``changed``, ``added``, ``removed``, ``reshaped`` (the shape differs),
            ``retyped`` (the dtype alone differs), or ``alike``: shape and dtype agree, and values were not asked for.
        shape_before: ``None`` where it was added.
        shape_after: ``None`` where it was removed.
        dtype_before: likewise.
        dtype_after: likewise.
        elements: how many it has, after or else before.
        max_abs: the largest absolute difference; NaN where one side holds a NaN that the other does not. ``None`` where
            there is nothing to subtract. 0 for ``changed`` is a zero of another sign or a NaN of another payload.
        mean_abs: the mean absolute difference, likewise.
        elements_changed: how many elements are not equal to the bit.
        nans_gained: how many elements are NaN in the second alone.
        nans_lost: how many are NaN in the first alone.
    """

    path: str
    module: str
    role: str
    change: str
    shape_before: tuple[int, ...] | None
    shape_after: tuple[int, ...] | None
    dtype_before: str | None
    dtype_after: str | None
    elements: int
    max_abs: float | None = None
    mean_abs: float | None = None
    elements_changed: int | None = None
    nans_gained: int | None = None
    nans_lost: int | None = None

    @property
    def role_class(self) -> str:
        """``weights``, ``biases``, ``norm weights``, ``norm statistics``, ``norm counters`` or ``other``."""
        return CLASSES.get(self.role, OTHER)


def count_beside(rows: Sequence[Row]) -> dict[str, int]:
    """How many were not compared, by why."""
    return {change: sum(row.change == change for row in rows) for change in BESIDE}
