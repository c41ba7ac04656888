"""Whether every process of a distributed run holds the same: digests, flags, modes and holds, never tensors.

Each process tells one digest of everything first. Only where those differ do rows travel, one for each entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import xxhash
from torch import nn

from frostline.errors import RanksDiffer
from frostline.freezing.found_holds import levels_of
from frostline.freezing.rank_comparison import RankComparison, RankEntry, compare_entries
from frostline.norms.processes import gathered, in_all, world_size
from frostline.state import names
from frostline.state.inventory import Inventory, entries_at, inventory
from frostline.state.selection import Selector, select
from frostline.state.shards import is_distributed
from frostline.state.snapshot import entries_of, record_entries

T = TypeVar("T")
Compared: TypeAlias = Literal["held", "everything"]
_KINDS = ("parameter", "buffer", "requires_grad", "mode")


@dataclass(frozen=True)
class _Told:
    """What one process tells first.

    Attributes:
        digest: one of all entries and of what holds them.
        entries: how many there are.
        held: how many of them are held.
        shards: paths of tensors of which this process has a part only.
    """

    digest: str
    entries: int
    held: int
    shards: tuple[str, ...]


def verify_ranks(
    model: nn.Module, *selectors: Selector, what: Compared = "held", process_group: Any = None
) -> RankComparison:
    """Prove that all processes hold the same. Each process of the group has to call this; it only reads.

    Values are compared by digest, flags and modes by value, and holds by the entries that they hold and their level.
    If one process fails here, all of them raise. Without an initialized ``torch.distributed``, or with one process,
    there is nothing to compare, and the result says so: a script runs in both ways.

    Of a tensor that is sharded over the processes (FSDP, tensor parallelism) each has another part. Those are compared
    by shape, dtype, flag and hold, not by value; the result names them. ``hold.verify()`` compares each part with what
    it was.

    Args:
        model: any module; wrappers are looked through.
        *selectors: compare only this part.
        what: ``"held"`` compares what is held on any process, and what holds it; ``"everything"`` all parameters,
            buffers, flags and modes too. Running statistics that each process keeps for itself differ until
            :func:`frostline.norms.merge_statistics`.
        process_group: the processes; by default all.

    Returns:
        The :class:`~frostline.freezing.rank_comparison.RankComparison`, in which nothing differs.

    Raises:
        RanksDiffer: something differs; its ``comparison`` names ranks and paths. Or another process failed.
        NothingSelected: a selector matches nothing.
        CannotDigest: a tensor has no bytes.

    Example:
        >>> print(verify_ranks(nn.Linear(1, 1)))
        one process: there is nothing to compare
    """
    world = world_size(process_group)
    if world < 2:
        return RankComparison(1, what)
    mine: dict[str, RankEntry] = {}

    def tell() -> _Told:
        mine.update(_entries(model, selectors, what))
        shards = tuple(path for path, entry in mine.items() if entry.shard)
        return _Told(_combined(mine), len(mine), sum(bool(entry.levels) for entry in mine.values()), shards)

    told = in_every(tell, "verify_ranks", process_group)
    if len({each.digest for each in told}) == 1:
        return RankComparison(world, what, told[0].entries, told[0].held, told[0].shards)
    # What is held on one process only is compared by value too, so that it is clear what would have to be held.
    paths = {path for theirs in gathered(list(mine), process_group) for path in theirs}
    rows = in_every(lambda: _at(model, paths), "verify_ranks", process_group)
    comparison = compare_entries(rows, what)
    if comparison.differences:
        raise RanksDiffer(f"verify_ranks: {comparison}", comparison)
    return comparison


def in_every(work: Callable[[], T], who: str, process_group: Any = None) -> list[T]:
    """Do local work in every process and gather what came of it; if it raises in one, every process raises.

    Without that, the others would wait for the one that failed.

    Args:
        work: what is done.
        who: does it, for the message.
        process_group: the processes; by default all.

    Raises:
        RanksDiffer: another process failed, and this one did not.

    Example:
        >>> in_every(lambda: 1 + 1, "here")
        [2]
    """
    return in_all(
        work,
        process_group,
        failed=lambda rank, there: RanksDiffer(f"{who}: rank {rank} failed, and this one did not\n  there: {there}"),
    )


def _entries(model: nn.Module, selectors: tuple[Selector, ...], what: Compared) -> dict[str, RankEntry]:
    """What this process has to tell of."""
    root = names.unwrap(model)
    levels = levels_of(root)
    if what == "held":
        entries = entries_at(root, levels)
    else:
        everything = inventory(root)
        entries = Inventory({p: e for p, e in everything.items() if e.kind in _KINDS or p in levels})
    if selectors:
        entries = entries_of(select(root, *selectors), entries)
    return _rows(entries, levels)


def _at(model: nn.Module, paths: set[str]) -> dict[str, RankEntry]:
    root = names.unwrap(model)
    return _rows(entries_at(root, paths), levels_of(root))


def _rows(entries: Inventory, levels: dict[str, tuple[str, ...]]) -> dict[str, RankEntry]:
    shards = Inventory(
        {path: entry for path, entry in entries.items() if entry.is_tensor and is_distributed(entry.value)}
    )
    whole = record_entries(Inventory({path: entry for path, entry in entries.items() if path not in shards}))
    rows: dict[str, RankEntry] = {}
    for path, entry in entries.items():
        if path in shards:
            shape, dtype = tuple(entry.value.shape), str(entry.value.dtype).removeprefix("torch.")
            rows[path] = RankEntry(entry.kind, None, dtype, shape, levels.get(path, ()), shard=True)
        else:
            record = whole[path]
            rows[path] = RankEntry(record.kind, record.mark, record.dtype, record.shape, levels.get(path, ()))
    return rows


def _combined(rows: dict[str, RankEntry]) -> str:
    state = xxhash.xxh3_128()
    # In one order, so that modules which were registered in another one do not count as a difference.
    for path in sorted(rows):
        row = rows[path]
        state.update(json.dumps([path, row.kind, row.mark, row.dtype, row.shape, row.levels, row.shard]).encode())
    return state.hexdigest()
