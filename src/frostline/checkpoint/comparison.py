"""What differs between two checkpoints, as a value that prints itself: tensor by tensor, by sub-tree, and in words.

Knows rows and names, never a file: comparing is done by `compare`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from html import escape
from typing import Any

from frostline.checkpoint.compared_row import BESIDE, ORDER, PAIRED, STATISTICS, Row, count_beside
from frostline.checkpoint.comparison_words import (
    count_tensors,
    is_training,
    name_rows,
    say_beside,
    say_counts,
    say_drifted,
    say_nans,
    say_reshaped,
    say_retyped,
    say_trained,
    say_untouched,
)
from frostline.json_values import finite
from frostline.state.changes import grouped, largest
from frostline.state.names import fold, name_folded
from frostline.tables import html_table, text_table

SCHEMA_VERSION = 1
_STATES = ("drifted", "untouched", "trained", "unmatched")
_MOST_ROWS = 40
_COLUMNS = ["sub-tree", "what", "changed", "of", "max |Δ|", "mean |Δ|", "beside"]


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
                grouped(subtree.rows, lambda row: row.role_class).items(), key=lambda item: ORDER.index(item[0])
            )
        ]

    @property
    def verdict(self) -> list[str]:
        """What happened, a line for each kind of fate: NaNs first, then statistics that moved in frozen parts."""
        if not self:
            alike = "alike in shape and dtype; values were not compared"
            said = alike if any(row.change == "alike" for row in self.rows) else "equal to the bit"
            return [f"all {count_tensors(len(self.rows))} {said}" if self.rows else "no tensors on either side"]
        lines = say_nans(self.rows)
        subtrees = self.subtrees()
        drifted = partial(say_drifted, is_cause_known=any(is_training(row) for row in self.rows))
        for state, say in (("drifted", drifted), ("untouched", say_untouched), ("trained", say_trained)):
            of_state = [subtree for subtree in subtrees if subtree.state == state]
            # Parts that were compared whole, and parts that were not, do not vouch for one another.
            for members in grouped(of_state, lambda each: any(row.change in BESIDE for row in each.rows)).values():
                whole = len(members) == len(subtrees)
                paths = [path for subtree in members for path in subtree.paths]
                where = "everything" if whole else name_folded(paths, rest="groups(), --json")
                rows = [row for subtree in members for row in subtree.rows]
                lines.append(f"{where}: {say(rows)}{say_beside(rows)}")
        for change in ("added", "removed"):
            rows = [row for row in self.rows if row.change == change]
            if rows:
                lines.append(f"{change}: {count_tensors(len(rows))}: {name_rows(rows)}")
        return [*lines, *say_reshaped(self.rows), *say_retyped(self.rows)]

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
        return f"{len(self.moved):,} of {count_tensors(len(self.rows))} differ, {self.still:,} {same}"

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
            for beside in [say_counts({change: getattr(group, change) for change in BESIDE})]
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
        common = (row for row in rows if row.change in PAIRED)
        for members in grouped(common, lambda row: row.module).values():
            for of_class, found in grouped(members, lambda row: row.role_class in STATISTICS).items():
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
        children = grouped(members, partial(_token, depth))
        branched = branched or len(children) > 1
        waiting += [(depth + 1, branched, child) for child in reversed(children.values())]
    return found


def _token(depth: int, member: tuple[list[str], Row]) -> str | None:
    tokens = member[0]
    return tokens[depth] if len(tokens) > depth else None


def _group(subtree: SubTree, role_class: str, rows: Sequence[Row]) -> Group:
    changed = [row for row in rows if row.change == "changed"]
    count = count_beside(rows)
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
