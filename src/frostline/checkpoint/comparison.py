"""What differs between two checkpoints, as a value that prints itself: tensor by tensor, by sub-tree, and in words.

Knows rows and names, never a file: comparing is done by `compare`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from typing import Any, TypeVar

from frostline.errors import name_some
from frostline.json_values import finite
from frostline.state.names import fold
from frostline.tables import html_table, text_table

SCHEMA_VERSION = 1
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
_ORDER = (*dict.fromkeys(CLASSES.values()), OTHER)
_STATISTICS = ("norm statistics", "norm counters")
_STATES = ("drifted", "untouched", "trained", "unmatched")
_COMPARED = frozenset({"same", "changed"})
_PAIRED = _COMPARED | {"alike"}
_BESIDE = ("added", "removed", "reshaped", "retyped")
_MOST_ROWS = 40
_COLUMNS = ["sub-tree", "what", "changed", "of", "max |Δ|", "mean |Δ|", "beside"]
K = TypeVar("K")
V = TypeVar("V")


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


@dataclass(frozen=True)
class SubTree:
    """Parts of a model that fared alike.

    Attributes:
        title: their paths in one line, ``layer[1-3]``; empty for the root itself.
        paths: their paths.
        state: of the tensors that are in both with one shape and dtype: ``drifted`` (norm statistics moved, and nothing
            else), ``untouched``, ``trained``, or ``unmatched``: there are none.
        rows: of all tensors below.
    """

    title: str
    paths: tuple[str, ...]
    state: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Group:
    """The tensors of one kind in one sub-tree.

    Attributes:
        subtree: the title of the sub-tree.
        state: its state.
        role_class: as in :attr:`Row.role_class`.
        total: how many tensors are in both with one shape and dtype.
        changed: how many of these are not equal to the bit.
        max_abs: the largest absolute difference.
        mean_abs: the largest mean absolute difference of a tensor.
        added: how many are only in the second.
        removed: how many are only in the first.
        reshaped: how many have another shape.
        retyped: how many have another dtype alone.
    """

    subtree: str
    state: str
    role_class: str
    total: int
    changed: int
    max_abs: float | None
    mean_abs: float | None
    added: int
    removed: int
    reshaped: int
    retyped: int


@dataclass(frozen=True)
class Comparison:
    """What differs between two checkpoints; ``bool`` of it is whether anything does.

    Attributes:
        rows: one for each name, in the order of the first checkpoint, then what was added.
    """

    rows: tuple[Row, ...]

    @property
    def moved(self) -> list[Row]:
        """The rows that differ."""
        return [row for row in self.rows if row.change not in {"same", "alike"}]

    @property
    def still(self) -> int:
        """How many tensors are equal to the bit; if values were not asked for, alike."""
        return len(self.rows) - len(self.moved)

    def __bool__(self) -> bool:
        return bool(self.moved)

    def subtrees(self) -> list[SubTree]:
        """The shortest paths that separate what changed from what did not, like ones together; the drifted first."""
        by_state: dict[str, dict[str, tuple[Row, ...]]] = {state: {} for state in _STATES}
        for path, rows in _split(self.rows):
            by_state[_Fate(rows).state][path] = rows
        found: list[SubTree] = []
        for state, parts in by_state.items():
            for folded in fold(list(parts)):
                rows = tuple(row for path in folded.paths for row in parts[path])
                found.append(SubTree(str(folded), folded.paths, state, rows))
        return found

    def groups(self) -> list[Group]:
        """Counts and largest differences by sub-tree and kind of tensor."""
        return [
            _group(subtree, role_class, rows)
            for subtree in self.subtrees()
            for role_class, rows in sorted(
                _by(subtree.rows, lambda row: row.role_class).items(), key=lambda item: _ORDER.index(item[0])
            )
        ]

    @property
    def verdict(self) -> list[str]:
        """What happened, a line for each kind of fate: NaNs first, then statistics that moved in frozen parts."""
        if not self:
            alike = "alike in shape and dtype; values were not compared"
            said = alike if any(row.change == "alike" for row in self.rows) else "equal to the bit"
            return [f"all {_count(len(self.rows))} {said}" if self.rows else "no tensors on either side"]
        lines = _say_nans(self.rows)
        subtrees = self.subtrees()
        drifted = partial(_say_drifted, is_cause_known=any(_is_training(row) for row in self.rows))
        for state, say in (("drifted", drifted), ("untouched", _say_untouched), ("trained", _say_trained)):
            of_state = [subtree for subtree in subtrees if subtree.state == state]
            # Parts that were compared whole, and parts that were not, do not vouch for one another.
            for members in _by(of_state, lambda each: any(row.change in _BESIDE for row in each.rows)).values():
                whole = len(members) == len(subtrees)
                paths = [path for subtree in members for path in subtree.paths]
                where = "everything" if whole else _folded(paths, rest="groups(), --json")
                rows = [row for subtree in members for row in subtree.rows]
                lines.append(f"{where}: {say(rows)}{_say_beside(rows)}")
        for change in ("added", "removed"):
            rows = [row for row in self.rows if row.change == change]
            if rows:
                lines.append(f"{change}: {_count(len(rows))}: {_folded([row.path for row in rows])}")
        return [*lines, *_say_reshaped(self.rows), *_say_retyped(self.rows)]

    def to_json(self) -> dict[str, Any]:
        """The rows that differ, the groups and the verdict as JSON-ready values with a schema version."""
        return finite(
            {
                "schema_version": SCHEMA_VERSION,
                "still": self.still,
                "verdict": self.verdict,
                "groups": [asdict(group) for group in self.groups()],
                "moved": [asdict(row) for row in self.moved],
            }
        )

    def __str__(self) -> str:
        if not self:
            return self.verdict[0]
        rows = self._table()
        more = [f"(+{len(rows) - _MOST_ROWS} more rows; comparison.groups())"] if len(rows) > _MOST_ROWS else []
        return "\n".join([self._totals(), *self.verdict, "", text_table(_COLUMNS, rows[:_MOST_ROWS], width=100), *more])

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.verdict)
        return lines + (html_table(_COLUMNS, self._table(), caption=self._totals()) if self else "")

    def _totals(self) -> str:
        same = "alike" if any(row.change == "alike" for row in self.rows) else "equal to the bit"
        return f"{len(self.moved):,} of {_count(len(self.rows))} differ, {self.still:,} {same}"

    def _table(self) -> list[list[object]]:
        """What is untouched stands in the verdict alone."""
        return [
            [
                group.subtree or "(root)",
                group.role_class,
                group.changed,
                group.total,
                group.max_abs,
                group.mean_abs,
                beside,
            ]
            for group in self.groups()
            for beside in [_counts({change: getattr(group, change) for change in _BESIDE})]
            if group.state != "untouched" or beside
        ]


class _Fate:
    """What happened to the modules of a sub-tree, as far as both checkpoints have them.

    Attributes:
        parameters: for the modules that have any but statistics, whether some changed.
        statistics: for the modules that have norm statistics, whether some changed.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.parameters: set[bool] = set()
        self.statistics: set[bool] = set()
        common = (row for row in rows if row.change in _PAIRED)
        for members in _by(common, lambda row: row.module).values():
            for of_class, found in _by(members, lambda row: row.role_class in _STATISTICS).items():
                seen = self.statistics if of_class else self.parameters
                seen.add(any(row.change == "changed" for row in found))

    @property
    def is_one(self) -> bool:
        """Whether all modules fared alike. Whether the statistics of modules that train moved makes no difference."""
        if len(self.parameters) > 1:
            return False
        return True in self.parameters or len(self.statistics) <= 1

    @property
    def state(self) -> str:
        if True in self.parameters:
            return "trained"
        if True in self.statistics:
            return "drifted"
        return "untouched" if self.parameters or self.statistics else "unmatched"


def _split(rows: Sequence[Row]) -> list[tuple[str, tuple[Row, ...]]]:
    """Cut the tree of names below its first branching, and on where modules fared differently, down to modules."""
    found: list[tuple[str, tuple[Row, ...]]] = []
    # Not by recursion: a name from a file may have more dots than Python has stack.
    waiting: list[tuple[int, bool, list[tuple[list[str], Row]]]] = [
        (0, False, [(row.path.split("."), row) for row in rows])
    ]
    while waiting:
        depth, branched, members = waiting.pop()
        own = tuple(row for _, row in members)
        is_module = all(len(tokens) <= depth + 1 for tokens, _ in members)
        if is_module or (branched and _Fate(own).is_one):
            if own:
                found.append((".".join(members[0][0][:depth]), own))
            continue
        children = _by(members, partial(_token, depth))
        branched = branched or len(children) > 1
        waiting += [(depth + 1, branched, child) for child in reversed(children.values())]
    return found


def _token(depth: int, member: tuple[list[str], Row]) -> str | None:
    tokens = member[0]
    return tokens[depth] if len(tokens) > depth else None


def _group(subtree: SubTree, role_class: str, rows: Sequence[Row]) -> Group:
    changed = [row for row in rows if row.change == "changed"]
    count = _beside(rows)
    return Group(
        subtree=subtree.title,
        state=subtree.state,
        role_class=role_class,
        total=len(rows) - sum(count.values()),
        changed=len(changed),
        max_abs=largest(row.max_abs for row in changed),
        mean_abs=largest(row.mean_abs for row in changed),
        **count,
    )


def _say_drifted(rows: Sequence[Row], *, is_cause_known: bool) -> str:
    moved = {row.role_class for row in rows if row.change == "changed"}
    what = "norm statistics" if "norm statistics" in moved else "norm counters"
    figures = _say_classes([row for row in rows if row.role_class in _STATISTICS], _STATISTICS)
    others = [row for row in rows if row.role_class not in _STATISTICS]
    if not any(row.change in _COMPARED for row in others):
        return f"{what} moved ({figures})" if others else f"nothing but statistics, which moved: {figures}"
    if any(row.change in _BESIDE for row in others):
        return f"weights and biases that are in both equal to the bit, {what} moved ({figures})"
    cause = "frozen by requires_grad alone" if is_cause_known else "nothing was trained, so train mode or recalibration"
    return f"weights and biases equal to the bit, {what} moved ({figures}): {cause}"


def _is_training(row: Row) -> bool:
    """Whether a row shows that something was trained or put in, beyond statistics."""
    return row.role_class not in _STATISTICS and row.change in {"changed", "added", "reshaped"}


def _say_untouched(rows: Sequence[Row]) -> str:
    compared, alike = (sum(row.change == change for row in rows) for change in ("same", "alike"))
    if alike:
        return f"alike in shape and dtype, values not compared ({_count(alike)})"
    return f"equal to the bit ({_count(compared)})"


def _say_trained(rows: Sequence[Row]) -> str:
    return f"trained ({_say_classes(rows, _ORDER)})"


def _say_beside(rows: Sequence[Row]) -> str:
    said = _counts(_beside(rows))
    return f"; not compared: {said}" if said else ""


def _say_classes(rows: Sequence[Row], classes: Sequence[str]) -> str:
    by_class = _by((row for row in rows if row.change in _COMPARED), lambda row: row.role_class)
    said: list[str] = []
    for role_class in classes:
        members = by_class.get(role_class, [])
        changed = [row for row in members if row.change == "changed"]
        if members:
            # NaNs have a line of their own, and would hide how far the others moved.
            size = largest(row.max_abs for row in changed if row.max_abs is None or not math.isnan(row.max_abs))
            by = "" if size is None else f" by up to {size:.3g}"
            said.append(f"{len(changed):,} of {len(members):,} {role_class}{by}")
    return ", ".join(said)


def _say_nans(rows: Sequence[Row]) -> list[str]:
    """Lines for the NaNs that came and those that went."""
    lines: list[str] = []
    for title, count in (("NaN", lambda row: row.nans_gained), ("NaN before, a number now", lambda row: row.nans_lost)):
        found = [(row.path, count(row)) for row in rows if count(row)]
        if found:
            total = sum(number for _, number in found)
            lines.append(f"{title}: {_folded([path for path, _ in found])}, {total:,} value{'s' * (total != 1)}")
    return lines


def _say_reshaped(rows: Sequence[Row]) -> list[str]:
    found = _by((row for row in rows if row.change == "reshaped"), lambda row: (_kind(row, 0), _kind(row, 1)))
    named = [
        f"{folded} {before} → {after}"
        for (before, after), members in found.items()
        for folded in fold([row.path for row in members])
    ]
    count = _count(sum(map(len, found.values())))
    return [f"reshaped: {count}: {name_some(named, rest='moved, --json')}"] if named else []


def _say_retyped(rows: Sequence[Row]) -> list[str]:
    found = _by((row for row in rows if row.change == "retyped"), lambda row: (row.dtype_before, row.dtype_after))
    return [
        f"retyped: {_count(len(members))}, {before} → {after}: {_folded([row.path for row in members])}"
        for (before, after), members in found.items()
    ]


def _kind(row: Row, side: int) -> str:
    """The shape before or after; with the dtype, where that differs too."""
    shape = (row.shape_before, row.shape_after)[side] or ()
    dtype = (row.dtype_before, row.dtype_after)[side]
    return f"{shape}" if row.dtype_before == row.dtype_after else f"{shape} {dtype}"


def _folded(paths: Sequence[str], rest: str = "moved, --json") -> str:
    return name_some([str(each) for each in fold(paths)], rest=rest)


def _beside(rows: Sequence[Row]) -> dict[str, int]:
    return {change: sum(row.change == change for row in rows) for change in _BESIDE}


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)


def _count(tensors: int) -> str:
    return f"{tensors:,} tensor" + "s" * (tensors != 1)


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


def _by(members: Iterable[V], key: Callable[[V], K]) -> dict[K, list[V]]:
    groups: dict[K, list[V]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return groups
