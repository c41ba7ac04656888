"""The difference between two states, as values that print themselves.

Knows rows and groups, never a model: comparing is done by `snapshot`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from frostline.errors import SnapshotError
from frostline.state import names
from frostline.state.inventory import SCHEMA_VERSION, TENSOR_KINDS
from frostline.tables import html_table, text_table

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Change:
    """One entry that is not what it was.

    Attributes:
        path: the dotted path.
        kind: ``parameter``, ``buffer``, ``mode``, ``requires_grad``, ``config`` or ``extra``.
        role: what the entry is for.
        module: the path of its module.
        module_type: the class name of its module.
        change: ``changed``, ``added``, ``removed``, or ``retyped`` (dtype or shape differ) or
            ``resharded`` (this process holds another part of the tensor, so that the values cannot be compared).
        before: the digest or value before, of a ``retyped`` or ``resharded`` entry its kind, dtype and shape; ``None``
            where it did not exist.
        after: likewise after; ``None`` where it no longer exists.
        max_abs: the largest absolute difference; ``None`` where the values before were not kept, NaN where one side
            holds a NaN that the other does not.
        mean_abs: the mean absolute difference, likewise.
    """

    path: str
    kind: str
    role: str
    module: str
    module_type: str
    change: str
    before: str | bool | int | float | None
    after: str | bool | int | float | None
    max_abs: float | None = None
    mean_abs: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready values; figures that JSON cannot write become strings."""
        row = dict(self.__dict__)
        for name in ("max_abs", "mean_abs", "before", "after"):
            if isinstance(row[name], float) and not math.isfinite(row[name]):
                row[name] = str(row[name])
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Change:
        """The inverse of :meth:`to_dict`."""
        fields: dict[str, Any] = dict(row)
        for name in ("max_abs", "mean_abs"):
            fields[name] = None if row[name] is None else float(row[name])
        return cls(**fields)


@dataclass(frozen=True)
class StateDiff:
    """What moved between two states, and how much stayed.

    ``bool(diff)`` is whether anything moved.

    Attributes:
        moved: a row for each entry that moved, in the order of the model.
        still: how many entries are equal to the bit.
    """

    moved: list[Change]
    still: int

    def __bool__(self) -> bool:
        return bool(self.moved)

    @property
    def paths(self) -> list[str]:
        """The paths of the entries that moved."""
        return [row.path for row in self.moved]

    def where(self, *kinds: str) -> StateDiff:
        """Only the moved rows of the given kinds; ``still`` counts what it counted."""
        return StateDiff([row for row in self.moved if row.kind in kinds], self.still)

    def by_module(self) -> dict[str, list[Change]]:
        """The rows grouped by the path of their module."""
        return grouped(self.moved, lambda row: row.module)

    def by_role(self) -> dict[str, list[Change]]:
        """The rows grouped by role."""
        return grouped(self.moved, lambda row: row.role)

    def to_json(self) -> dict[str, Any]:
        """The diff as JSON-ready values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "still": self.still,
            "moved": [row.to_dict() for row in self.moved],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StateDiff:
        """The inverse of :meth:`to_json`.

        Raises:
            SnapshotError: the data is of another schema version.
        """
        check_version(data)

        moved = [Change.from_dict(row) for row in data["moved"]]
        return cls(moved, data["still"])

    def __str__(self) -> str:
        if not self.moved:
            return f"nothing moved: {self.still:,} entries equal to the bit"
        rows = self._rows()
        table = text_table(_COLUMNS, rows[:40], width=100)
        more = f"\n(+{len(rows) - 40} more rows; diff.to_json())" if len(rows) > 40 else ""
        return f"{len(self.moved):,} entries moved, {self.still:,} equal to the bit\n{table}{more}"

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows(), caption=f"{len(self.moved)} moved, {self.still} still")

    def _rows(self) -> list[list[object]]:
        """One row for each set of paths that differ only in their numbers and changed alike."""
        groups = grouped(self.moved, lambda row: (row.kind, row.role, row.change, row.module_type))
        rows: list[list[object]] = []
        for members in groups.values():
            known = {row.path: row for row in members}
            for folded in names.fold(list(known)):
                of_fold = [known[path] for path in folded.paths]
                what = of_fold[0].change
                if len(of_fold) == 1 and of_fold[0].kind not in TENSOR_KINDS and what == "changed":
                    what = f"{of_fold[0].before} → {of_fold[0].after}"
                rows.append(
                    [
                        str(folded),
                        of_fold[0].role,
                        of_fold[0].module_type,
                        what,
                        largest(row.max_abs for row in of_fold),
                        largest(row.mean_abs for row in of_fold),
                    ]
                )
        return rows


_COLUMNS = ["path", "role", "module", "change", "max |Δ|", "mean |Δ|"]


def check_version(data: Mapping[str, Any]) -> None:
    """Refuse data that another version of the library wrote.

    Raises:
        SnapshotError: its schema version is not ours.
    """
    if data.get("schema_version") != SCHEMA_VERSION:
        raise SnapshotError(
            f"this file has schema version {data.get('schema_version')!r}, this version reads {SCHEMA_VERSION}"
        )


def largest(values: Iterable[float | None]) -> float | None:
    """The largest of the figures that are known; NaN is larger than all.

    Example:
        >>> largest([1.0, None, 2.0]), largest([])
        (2.0, None)
    """
    known = [value for value in values if value is not None]
    if any(map(math.isnan, known)):
        return math.nan
    return max(known, default=None)


def grouped(members: Iterable[V], key: Callable[[V], K]) -> dict[K, list[V]]:
    """Members by what a function says of them, in the order in which it says so first.

    Example:
        >>> grouped(["a.b", "c", "a.d"], lambda path: path.partition(".")[0])
        {'a': ['a.b', 'a.d'], 'c': ['c']}
    """
    groups: dict[K, list[V]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return groups
