"""The shards of a folder, and the rows in them that are asked for.

Knows files, slots and columns; knows nothing of datasets or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from frostline.errors import CacheError, CorruptCache
from frostline.fast.cache_layout import Layout
from frostline.fast.cache_manifest import NAME, Manifest, read_manifest
from frostline.fast.sample_table import Ints
from frostline.fast.shards import Column, Shard, ShardRecord, new_rows, open_shard

# More rows than this of one shard are copied by one call; fewer are quicker one by one.
_WORTH_A_CALL = 16


class Shelf:
    """The shards of a folder, opened when they are first used, each checked once by this process.

    A writer may be at work: what it has added is found when it is asked for. A copy in another process opens its own.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.use(manifest)

    def use(self, manifest: Manifest, stamp: tuple[int, int, int] | None = None) -> None:
        """Go on with another manifest of the same features; open shards that it still names stay open.

        Args:
            manifest: what the folder holds.
            stamp: the state of the file before it was read, where that is known.
        """
        self.manifest = manifest
        self.layout = Layout.of(manifest)
        self._stamp = stamp
        before: dict[tuple[str, str], Shard] = getattr(self, "_open", {})
        self._open = {
            identity: before[identity] for each in manifest.shards if (identity := (each.file, each.digest)) in before
        }
        self._places: dict[int, tuple[Ints, Ints]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "manifest": self.manifest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder = state["folder"]
        self.use(state["manifest"])

    def shard(self, record: ShardRecord) -> Shard:
        """Open a shard, or give the open one.

        Raises:
            CorruptCache: it is damaged.
        """
        identity = (record.file, record.digest)
        if identity not in self._open:
            path = self.folder / record.file
            self._open[identity] = open_shard(path, record.digest, record.nbytes, self.layout.columns)
        return self._open[identity]

    def drop_damaged(self) -> tuple[str, ...]:
        """Check every shard, and forget those that are damaged; no file is touched.

        Returns:
            The names of their files.
        """
        damaged: list[ShardRecord] = []
        for record in self.manifest.shards:
            try:
                self.shard(record)
            except CorruptCache:
                damaged.append(record)
        if damaged:
            self.use(replace(self.manifest, shards=tuple(each for each in self.manifest.shards if each not in damaged)))
        return tuple(record.file for record in damaged)

    def holds(self, view: int, slots: Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of these slots are computed under a view."""
        numbers, _ = self._located(view, int(slots.max(initial=-1)) + 1)
        return numbers[slots] >= 0

    def rows(self, view: int, slots: Ints, columns: Sequence[Column]) -> dict[str, Tensor]:
        """Copy rows of columns.

        Raises:
            CacheError: a slot is not computed yet; :meth:`holds` says which.
            CorruptCache: a shard is damaged.
        """
        try:
            return self._rows(view, slots, columns)
        except (CacheError, KeyError):
            # A writer may have added or replaced shards since the manifest was read.
            if not self.refreshed():
                raise
            return self._rows(view, slots, columns)

    def refreshed(self) -> bool:
        """Read the manifest again if it has changed; whether it has."""
        stamp = _stamp(self.folder)
        if stamp is None or stamp == self._stamp:
            return False
        manifest = read_manifest(self.folder)
        # Slots of a cache that was made anew may be those of other samples.
        if manifest is None or manifest.origin != self.manifest.origin:
            return False
        self.use(manifest, stamp)
        return True

    def _rows(self, view: int, slots: Ints, columns: Sequence[Column]) -> dict[str, Tensor]:
        numbers, rows = self._located(view, int(slots.max(initial=-1)) + 1)
        numbers, rows = numbers[slots], rows[slots]
        if len(numbers) and int(numbers.min()) < 0:
            raise CacheError(f"{int((numbers < 0).sum())} samples are not computed yet")
        made = {column.name: new_rows(column, len(slots)) for column in columns}
        listed = numbers.tolist()
        shards = {number: self.shard(self.manifest.shards[number]) for number in set(listed)}
        if len(slots) < _WORTH_A_CALL * len(shards):
            where = list(zip(range(len(slots)), listed, rows.tolist(), strict=True))
            for name, (_, into) in made.items():
                sources = {number: shard.rows(name) for number, shard in shards.items()}
                for place, number, row in where:
                    into[place] = sources[number][row]
        else:
            for number, shard in shards.items():
                at = np.flatnonzero(numbers == number) if len(shards) > 1 else slice(None)
                for name, (_, into) in made.items():
                    into[at] = shard.rows(name)[rows[at]]
        return {name: tensor for name, (tensor, _) in made.items()}

    def _located(self, view: int, least: int) -> tuple[Ints, Ints]:
        """For each slot the number of its shard, -1 where it has none, and its row there."""
        known = self._places.get(view)
        if known is not None and len(known[0]) >= least:
            return known
        parts = [(number, each.rows) for number, each in enumerate(self.manifest.shards) if each.view == view]
        count = max([least, *(int(slots.max(initial=-1)) + 1 for _, slots in parts)])
        numbers, rows = np.full(count, -1, np.int64), np.zeros(count, np.int64)
        for number, slots in parts:
            numbers[slots], rows[slots] = number, np.arange(len(slots))
        self._places[view] = numbers, rows
        return numbers, rows


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    try:
        status = (folder / NAME).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
