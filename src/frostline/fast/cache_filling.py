"""What is missing of a cache, computed shard by shard.

Knows extractors, batches and columns; knows nothing of folders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from frostline.fast.cache_layout import Layout
from frostline.fast.features import Extractor
from frostline.fast.pending_shard import PendingShard, features_of, refuse_unsteady
from frostline.fast.sample_table import Ints, chunks
from frostline.fast.view_batches import ViewBatch, ViewBatches, Wanted

Loads: TypeAlias = "Callable[[Iterator[ViewBatch]], Iterator[ViewBatch]]"


class CacheFilling:
    """Computes features and gathers them into shards.

    Args:
        extractor: computes them, as many samples at a time as it likes.
        batches: reads the samples.
        layout: how they are kept.
        per_shard: samples of a shard, at most; a shard is also ready after half a minute.
    """

    def __init__(self, extractor: Extractor, batches: ViewBatches, layout: Layout, per_shard: int) -> None:
        self._extractor, self._batches, self._layout, self._per_shard = extractor, batches, layout, per_shard

    def shards(
        self,
        jobs: Sequence[Ints],
        order: Ints,
        in_worker: Callable[[], None],
        measured: Callable[[float], None],
        progress: Callable[[int, int], object] | None,
        loads: Loads,
    ) -> Iterator[PendingShard]:
        """Compute what is missing.

        Args:
            jobs: for each view the slots to fill.
            order: the slot of each sample.
            in_worker: called by each process that reads samples before it begins.
            measured: called with the samples each second once the first batch has been computed, which is done twice.
            progress: called with the samples that are computed, and those that there are to compute.
            loads: given the batches as they are read, gives them on.

        Yields:
            Each shard when it is whole.

        Raises:
            CacheError: the extractor is not deterministic or gives something else than it says, a sample is of another
                form than the first, or features cannot be narrowed.
        """
        # Of samples that share a slot, the first one is read.
        index_of = np.zeros(int(order.max()) + 1, np.int64)
        index_of[order[::-1]] = np.arange(len(order))[::-1]
        total, done = sum(map(len, jobs)), 0
        begun = time.perf_counter()
        shard = PendingShard(self._layout, self._per_shard)
        for batch in loads(self._batches.read(self._wanted(jobs, index_of), in_worker)):
            read = time.perf_counter() - begun
            begun_computing = time.perf_counter()
            features = features_of(self._extractor, batch)
            computed = time.perf_counter() - begun_computing
            if not done:
                if not getattr(self._extractor, "steady", False):
                    # The first run may have been slow for reasons of its own, so the second one is timed.
                    again = time.perf_counter()
                    refuse_unsteady(self._extractor, batch, features)
                    computed = time.perf_counter() - again
                workers = self._batches.workers
                seconds = max(computed, read / workers) if workers else computed + read
                measured(len(batch.indices) / max(1e-9, seconds))
            shard.add(batch, order[batch.indices], features)
            done += len(batch.indices)
            if shard.full or shard.ends(jobs[batch.view]):
                yield shard
                shard = PendingShard(self._layout, self._per_shard)
            if progress is not None:
                progress(done, total)

    def _wanted(self, jobs: Sequence[Ints], index_of: Ints) -> Iterator[Wanted]:
        rows = max(1, self._extractor.rows)
        for view, slots in enumerate(jobs):
            # A shard ends with a batch, so that each batch goes into one.
            for shard in chunks(slots, self._per_shard):
                for batch in chunks(shard, rows):
                    yield view, index_of[batch]
