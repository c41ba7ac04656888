"""What several processes hold, laid side by side; pure Python, knows nothing of models and processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from frostline.errors import name_some
from frostline.state import names
from frostline.tables import html_table

SCHEMA_VERSION = 1
# In the order in which a reader wants to know: what is missing explains what differs.
_ORDER = ("missing", "hold", "shape", "flag", "value")


@dataclass(frozen=True)
class RankEntry:
    """One state entry on one process.

    Attributes:
        kind: as in :class:`~frostline.state.inventory.Entry`.
        mark: the digest of a tensor, the value of a flag; ``None`` for a shard.
        dtype: of a tensor.
        shape: of a tensor; of the whole one where it is sharded.
        levels: of the holds on it, sorted; empty where it is not held.
        shard: whether this process has a part of the tensor only.
    """

    kind: str
    mark: str | bool | int | float | None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    levels: tuple[str, ...] = ()
    shard: bool = False


@dataclass(frozen=True)
class RankGap:
    """One entry that is not the same on all processes.

    Attributes:
        path: of the entry.
        kind: likewise.
        change: ``missing`` where processes do not have it, ``hold`` where they do not hold it alike, ``shape`` for
            another kind, shape or dtype, ``flag`` for a flag, mode or configuration, ``value`` for bytes.
        by_rank: what each process has, in the order of the ranks.
    """

    path: str
    kind: str
    change: str
    by_rank: tuple[str, ...]


@dataclass
class RankComparison:
    """What :func:`~frostline.freezing.verify_ranks` found; prints as lines, as a table in a notebook.

    Attributes:
        world: number of processes.
        what: ``held`` or ``everything``.
        entries: how many state entries were compared.
        held: how many of those are held, on all processes.
        shards: tensors of which each process has a part only; their values were not compared.
        differences: what is not the same.
    """

    world: int
    what: str
    entries: int = 0
    held: int = 0
    shards: tuple[str, ...] = ()
    differences: list[RankGap] = field(default_factory=list[RankGap])

    @property
    def paths(self) -> list[str]:
        """The entries that differ, each once."""
        return list(dict.fromkeys(gap.path for gap in self.differences))

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON-ready values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "world": self.world,
            "what": self.what,
            "entries": self.entries,
            "held": self.held,
            "shards": list(self.shards),
            "differences": [{**asdict(gap), "by_rank": list(gap.by_rank)} for gap in self.differences],
        }

    def __str__(self) -> str:
        if self.world == 1:
            return "one process: there is nothing to compare"
        sharded = _folded(self.shards)
        beside = [f"  sharded, so not compared by value: {sharded}"] if self.shards else []
        if not self.differences:
            count = f"{self.entries:,} state entries, {self.held:,} of them held"
            return "\n".join([f"{self.world} processes hold the same: {count}", *beside])
        lines = [f"{len(self.paths)} of {self.entries:,} state entries are not the same on {self.world} processes"]
        lines += [f"  {line}" for line in self._lines()]
        return "\n".join([*lines, *beside, f"  fix: {self._fix()}"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        ranks = [f"rank {rank}" for rank in range(self.world)]
        rows = [[gap.path, gap.change, *gap.by_rank] for gap in self.differences]
        return html_table(["path", "difference", *ranks], rows, caption=str(self).splitlines()[0])

    def _lines(self) -> list[str]:
        """One line for each group of entries that differ in the same way between the same ranks."""
        groups: dict[tuple[object, ...], list[RankGap]] = {}
        for gap in self.differences:
            # Digests are many; which ranks agree with which is what entries have in common.
            same = gap.by_rank if gap.change in {"missing", "hold"} else _pattern(gap.by_rank)
            groups.setdefault((_ORDER.index(gap.change), gap.kind if gap.change == "flag" else "", same), []).append(
                gap
            )
        return [_line(group) for _, group in sorted(groups.items(), key=lambda item: (item[0][0], str(item[0][1:])))]

    def _fix(self) -> str:
        changes = {gap.change for gap in self.differences}
        if "missing" in changes or "shape" in changes:
            return "build the same model on every process"
        if "hold" in changes:
            return "freeze and thaw the same parts on every process, not under `if rank == 0`"
        if "value" in changes:
            return "load the same weights on every process before freezing; merge_statistics(model) for statistics"
        return "set flags and modes alike on every process"


def compare_entries(ranks: Sequence[Mapping[str, RankEntry]], what: str) -> RankComparison:
    """Lay what the processes have side by side.

    Args:
        ranks: path to entry, for each process.
        what: as for :func:`~frostline.freezing.verify_ranks`.

    Example:
        >>> one, other = RankEntry("mode", True, levels=("state",)), RankEntry("mode", True)
        >>> print(compare_entries([{"bn.training": one}, {"bn.training": other}], "held"))
        1 of 1 state entries are not the same on 2 processes
          rank 1 does not hold bn.training, which rank 0 holds at level 'state'
          fix: freeze and thaw the same parts on every process, not under `if rank == 0`
    """
    paths = list(dict.fromkeys(path for entries in ranks for path in entries))
    gaps = [gap for path in paths for gap in _gaps(path, [entries.get(path) for entries in ranks])]
    shards = tuple(p for p in paths if any((entry := entries.get(p)) and entry.shard for entries in ranks))
    held = sum(all((entry := entries.get(p)) and entry.levels for entries in ranks) for p in paths)
    return RankComparison(len(ranks), what, len(paths), held, shards, gaps)


def _gaps(path: str, found: Sequence[RankEntry | None]) -> list[RankGap]:
    there = [entry for entry in found if entry is not None]
    kind = there[0].kind
    if len(there) < len(found):
        return [RankGap(path, kind, "missing", tuple("missing" if entry is None else "there" for entry in found))]
    gaps: list[RankGap] = []
    if len({entry.levels for entry in there}) > 1:
        gaps.append(RankGap(path, kind, "hold", tuple(" and ".join(entry.levels) for entry in there)))
    if len({(entry.kind, entry.dtype, entry.shape, entry.shard) for entry in there}) > 1:
        return [*gaps, RankGap(path, kind, "shape", tuple(map(_described, there)))]
    # True and 1 are equal in Python, and as flags; a digest is text.
    if len({entry.mark for entry in there}) > 1:
        change = "value" if kind in {"parameter", "buffer", "extra"} else "flag"
        # A flag that a hold has set differs because the hold does.
        if change == "value" or all(bool(entry.levels) == bool(there[0].levels) for entry in there):
            gaps.append(RankGap(path, kind, change, tuple(str(entry.mark) for entry in there)))
    return gaps


def _described(entry: RankEntry) -> str:
    shape = "x".join(map(str, entry.shape or ()))
    return " ".join(part for part in [entry.kind, entry.dtype, shape, "shard" if entry.shard else ""] if part)


def _pattern(by_rank: Sequence[str]) -> tuple[int, ...]:
    """Which ranks have the same: for each rank the first one that has what it has."""
    return tuple(by_rank.index(value) for value in by_rank)


def _line(group: Sequence[RankGap]) -> str:
    gap, where = group[0], _folded([gap.path for gap in group])
    ranks = _by_value(gap.by_rank)
    if gap.change == "missing":
        missing, there = _said(ranks["missing"], " does", " do"), _said(ranks["there"], " has", " have")
        return f"{missing} not have {where}, which {there}"
    if gap.change == "hold" and "" in ranks:
        others = [f"{_said(r, ' holds', ' hold')} at level {level!r}" for level, r in ranks.items() if level]
        return f"{_said(ranks[''], ' does', ' do')} not hold {where}, which {' and '.join(others)}"
    each = ", ".join(f"{_said(theirs)}: {_short(gap, value)}" for value, theirs in ranks.items())
    what = {"hold": "held at other levels", "shape": "of another shape or dtype", "value": "other values"}
    return f"{what.get(gap.change, f'other {gap.kind}')}: {where} ({each}{', ...' if len(group) > 1 else ''})"


def _by_value(by_rank: Sequence[str]) -> dict[str, list[int]]:
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(by_rank):
        ranks.setdefault(value, []).append(rank)
    return ranks


def _said(ranks: Sequence[int], one: str = "", several: str = "") -> str:
    shown = name_some([str(rank) for rank in ranks])
    return f"rank {shown}{one}" if len(ranks) == 1 else f"ranks {shown}{several}"


def _short(gap: RankGap, value: str) -> str:
    return value[:8] if gap.change == "value" else value


def _folded(paths: Sequence[str]) -> str:
    return names.name_folded(paths, rest="comparison.paths")
