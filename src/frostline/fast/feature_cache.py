"""Features of a frozen prefix, computed once for each sample and view, and kept on the disk.

Knows when what is kept may be used again; knows nothing of how features are computed.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from frostline.checkpoint.stored import dtype_name
from frostline.errors import CacheError, CacheMismatch, CorruptCache, StorageFull
from frostline.fast import cache_manifest
from frostline.fast.cache_filling import CacheFilling, Loads
from frostline.fast.cache_key import CacheKey, key_of
from frostline.fast.cache_layout import Layout
from frostline.fast.cache_manifest import Manifest
from frostline.fast.cache_match import refuse_other_key, refuse_other_samples
from frostline.fast.cache_reports import CacheEstimate, FillReport, free_at
from frostline.fast.cached_features import CachedFeatures
from frostline.fast.features import Extractor, Place
from frostline.fast.pending_shard import PendingShard
from frostline.fast.sample_parts import form_of
from frostline.fast.sample_table import Ints, SampleTable, digests, numbered, ranges
from frostline.fast.shards import ShardRecord, write_shard
from frostline.fast.shelf import Shelf
from frostline.fast.view_batches import ViewBatches
from frostline.fast.views import ViewedSamples, preprocessing_key, views_refused
from frostline.fast.writer_lock import WriterLock, writing

Positions = Literal["any", "same"]
# A file of features is written when it has so many bytes, if not before: see `PendingShard.full`.
_SHARD_BYTES = 64 * 2**20
# Headers of files, the names in them, and what the manifest says of each.
_PER_SHARD = 2048
_PER_SAMPLE = 24


class FeatureCache(CachedFeatures):
    """The features that an extractor gives of a dataset, each computed once.

    *What is reused.* Features are those of exactly this extractor (its weights by digest), these samples, this
    preprocessing, dtype and seed; a folder made of anything else is refused with what differs, and left alone. A few
    samples are read again and compared with the digests of what was read before, so that a changed transform that says
    nothing of itself is found too. Samples that have been added are computed, the others are not. Asking for more views
    computes only the new ones.

    *Which sample is which.* A dataset may have ``sample_key(index)``, a text that changes when the sample does, such as
    its path, size and time. Then samples may be added anywhere, removed, changed or put in another order. Without it a
    sample is its index, and may only be added at the end. Two samples of one key are two samples where the transform is
    random.

    *Views.* View ``v`` of a dataset with ``set_epoch`` is its epoch ``v + 1``; of others that draw random numbers, the
    generators are seeded by (seed, view, index). See :class:`~frostline.fast.views.ViewedSamples`. One view of a random
    transform without ``set_epoch`` is refused: it would freeze the augmentation.

    *What is guaranteed.* Nothing of the model or the dataset is changed, nor the state of any random generator of the
    process. Without narrowing, features come back equal to the bit. A kill at any moment leaves a folder that is valid
    as far as it goes; a file that was damaged is found by its checksum and computed again alone. One process writes,
    several may read.

    Args:
        folder: where features are kept; made by :meth:`fill`.
        extractor: what computes them.
        dataset: map-style; a sample is ``(input, target)``, or the input alone.
        views: how many views of each sample.
        preprocessing: a text that is equal where samples are prepared equally; by default the ``preprocessing_key`` of
            the dataset.
        dtype: ``torch.float16``, ``torch.bfloat16`` or ``torch.uint8`` (8 bits, each with its own range) to keep
            features in less space. They come back in their own type, and what was lost is measured.
        limit: the most bytes on the disk; by default half of what is free.
        samples_per_shard: samples of one file; by default as many as are 64 MiB or half a minute of work.
        workers: processes that read the dataset. The result does not depend on it.
        seed: of transforms that draw from the generators of the process.
        positions: of a random transform whose augmentation depends on the index: whether a sample that has moved to
            another index keeps its features (``"any"``), or is computed again, as it would be without a cache
            (``"same"``).
        rebuild: replace what the folder holds, once, when it is filled. The only way to overwrite features.

    Raises:
        CacheError: the dataset or an argument cannot be used, or the folder holds something else.
        CacheMismatch: the folder holds features of something else.
        CorruptCache: its manifest is damaged.

    Example:
        >>> import tempfile
        >>> from frostline.fast.features import Place
        >>> class Double:
        ...     places, rows, identity, entries = [Place("x", (2,), torch.float32)], 4, {"weights": "0"}, {}
        ...     def __call__(self, inputs):
        ...         return (2 * inputs,)
        >>> dataset = [(torch.full((2,), float(i)), i) for i in range(5)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = FeatureCache(folder, Double(), dataset)
        ...     cache.fill().computed, cache.batch([4, 1]), cache.view(0)[3]
        (5, ((tensor([[8., 8.], [2., 2.]]),), tensor([4, 1])), (tensor([6., 6.]), 3))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        extractor: Extractor,
        dataset: Any,
        *,
        views: int = 1,
        preprocessing: str | None = None,
        dtype: torch.dtype | None = None,
        limit: int | None = None,
        samples_per_shard: int | None = None,
        workers: int = 0,
        seed: int = 0,
        positions: Positions = "any",
        rebuild: bool = False,
    ) -> None:
        for name, value, least in (
            ("views", views, 1),
            ("samples_per_shard", samples_per_shard, 1),
            ("workers", workers, 0),
        ):
            if value is not None and value < least:
                raise CacheError(f"{name}={value}: there cannot be fewer than {least}\n  fix: {name}={max(least, 1)}")
        super().__init__(folder, None, np.empty(0, np.int64), views)
        self._extractor = extractor
        self._samples = ViewedSamples(dataset, seed)
        self._dtype = dtype
        self._preprocessing = preprocessing if preprocessing is not None else preprocessing_key(dataset)
        self._limit, self._per_shard, self._workers = limit, samples_per_shard, workers
        self._positions: Positions = positions
        self._rebuild = rebuild
        self._randomness = ""
        self._key: CacheKey | None = None
        with self._samples.reading():
            first = self._samples.read(0, 0)
        self._input, self._target = form_of(first.input), form_of(first.target)
        # Refuses a dtype before anything is read or computed.
        self._layout = Layout(tuple(extractor.places), dtype, self._target)
        self._load()

    @property
    def places(self) -> tuple[Place, ...]:
        """What each sample has features of, in order."""
        return tuple(self._extractor.places)

    @property
    def moved(self) -> int:
        """How many samples keep the augmentation that was drawn for the index at which they stood before."""
        return 0 if self._randomness == "none" else len(self._table.moved)

    def estimate(self) -> CacheEstimate:
        """What filling it would take. Nothing is computed or written."""
        return self._estimate(None)

    def fill(
        self,
        say: Callable[[str], object] | None = None,
        progress: Callable[[int, int], object] | None = None,
        loads: Loads = iter,
    ) -> FillReport:
        """Compute what is missing or damaged, and nothing else.

        Every file is checked first. The first batch is computed a second time, the other way round, and compared.

        Args:
            say: called with the estimate, a line, before anything is computed.
            progress: called with how many samples are computed, and how many there are to compute.
            loads: given the batches as they are read, gives them on; to see how long they are waited for.

        Returns:
            What was done.

        Raises:
            CacheError: it would go over the limit; the extractor is not deterministic, or gives something else than it
                says; a sample is of another form than the first; features are too large for ``dtype``.
            CacheBusy: another process is writing.
            CacheMismatch: another process has filled the folder with something else meanwhile.
            StorageFull: there is no space left; what is there stays valid.
            CannotWrite: the folder cannot be written to.
        """
        begun = time.perf_counter()
        if not self.folder.is_dir():
            self._estimate(None).refuse_over_limit(self._dtype)
            cache_manifest.make_folder(self.folder)
        with writing(self.folder) as lock:
            self._load()
            damaged = () if self._shelf is None else self._shelf.drop_damaged()
            jobs = self._missing()
            estimate = self._estimate(jobs)
            estimate.refuse_over_limit(self._dtype)
            self._begin()
            computed = self._compute(jobs, estimate, lock, say, progress, loads)
        return FillReport(
            computed=computed,
            reused=len(np.unique(self._order)) * self.views - computed,
            damaged=damaged,
            moved=self.moved,
            seconds=time.perf_counter() - begun,
            nbytes=self.nbytes,
            narrowing=self.narrowing,
        )

    # What is there

    def _load(self) -> None:
        """Read the folder, and make sure that what it holds may be used."""
        # Whatever is read to find out must not move a generator of the process.
        self._samples.seeded = True
        try:
            both = cache_manifest.read_both(self.folder)
        except (CacheMismatch, CorruptCache):
            if not self._rebuild:
                raise
            both = None
        if both is None or self._rebuild:
            self._start_anew()
            return
        manifest, table = both
        before = self._shelf
        randomness = manifest.key.randomness
        if views_refused(randomness, self.views):  # which of another transform would be beside the point
            randomness = self._samples.probe()
        key = self._ask(randomness)
        refuse_other_key(self.folder, key, manifest, self._input, self._target)
        self._place(table, key)
        if before is not None and before.manifest.origin == manifest.origin:
            before.use(manifest)
        else:
            self._shelf = Shelf(self.folder, manifest)
            self._refuse_other_samples(len(table.keys))

    def _start_anew(self) -> None:
        self._shelf = None
        if not self._randomness:
            self._randomness = self._samples.probe()
        self._place(SampleTable.empty(), self._ask(self._randomness))

    def _ask(self, randomness: str) -> CacheKey:
        """The key that is asked for, given what samples depend on, and the refusals that follow from that."""
        refusal = views_refused(randomness, self.views)
        if refusal:
            raise CacheError(refusal)
        self._randomness = randomness
        return key_of(
            self._extractor,
            preprocessing=self._preprocessing,
            dtype="" if self._dtype is None else dtype_name(self._dtype),
            keyed=self._samples.keyed,
            randomness=randomness,
            seed=self._samples.seed,
            positions=self._positions,
        )

    def _place(self, table: SampleTable, key: CacheKey) -> None:
        random = key.randomness != "none"
        texts = [self._samples.key(index) if key.keyed else str(index) for index in range(len(self._samples))]
        if key.keyed and random and self._positions == "same":
            texts = [f"{index}\0{text}" for index, text in enumerate(texts)]
        elif random:
            texts = numbered(texts)
        self._key = key
        self._table = table.placed(digests(texts))
        self._order = self._table.order

    def _refuse_other_samples(self, known: int) -> None:
        """Read a few of the known samples again; of a random transform those that stand where they stood."""
        same = np.flatnonzero(self._order < known)
        if self._randomness != "none":
            same = np.setdiff1d(same, self._table.moved)
        refuse_other_samples(self._samples, self._there(), same, self._order[same])

    def _missing(self) -> list[Ints]:
        """For each view the slots that are to be computed, in the order of the dataset."""
        slots, first = np.unique(self._order, return_index=True)
        slots = slots[np.argsort(first)]
        if self._shelf is None:
            return [slots] * self.views
        shelf = self._shelf
        return [slots[~shelf.holds(view, slots)] for view in range(self.views)]

    # What it takes

    def _estimate(self, jobs: list[Ints] | None, rate: float = 0.0) -> CacheEstimate:
        jobs = self._missing() if jobs is None else jobs
        missing = sum(map(len, jobs))
        shards = sum(-(-len(job) // self._shard_samples()) for job in jobs)
        table = _PER_SAMPLE * len(self._table.keys) + 8 * len(self._order) + _PER_SHARD
        missing_bytes = missing * self._layout.nbytes + shards * _PER_SHARD
        there = 0 if self._shelf is None else sum(shard.nbytes for shard in self._shelf.manifest.shards)
        free = free_at(self.folder)
        rate = rate or (0.0 if self._shelf is None else self._shelf.manifest.rate)
        nbytes = there + missing_bytes + table
        return CacheEstimate(
            folder=self.folder,
            samples=len(self),
            views=self.views,
            nbytes=nbytes,
            missing=missing,
            missing_bytes=missing_bytes,
            free=free,
            limit=there + (free + self._replaced_bytes()) // 2 if self._limit is None else self._limit,
            seconds=missing / rate if rate else None,
            limited=self._limit is not None,
        )

    def _replaced_bytes(self) -> int:
        """What a rebuild will have removed before it writes."""
        if not self._rebuild or not self.folder.is_dir():
            return 0
        return sum(path.stat().st_size for path in self.folder.iterdir() if cache_manifest.is_ours(path))

    def _shard_samples(self) -> int:
        rows = max(1, self._extractor.rows)
        most = max(1, _SHARD_BYTES // max(1, self._layout.nbytes))
        return self._per_shard or max(rows, most // rows * rows)

    # Computing

    def _begin(self) -> None:
        """Write what the first shard needs: the table, and a manifest that names it."""
        assert self._key is not None
        before = None if self._shelf is None else self._shelf.manifest
        manifest = before
        if before is None or not self._table_is_written(before):
            record = cache_manifest.write_table(self.folder, self._table)
            if before is None:
                manifest = Manifest(self._key, secrets.token_hex(8), self._input, self._target, self.views, record)
            else:
                manifest = replace(before, table=record)
        assert manifest is not None
        self._write(replace(manifest, views=max(manifest.views, self.views)))
        cache_manifest.remove_others(self.folder, self._there().manifest)
        self._rebuild = False

    def _table_is_written(self, manifest: Manifest) -> bool:
        there = cache_manifest.read_table(self.folder, manifest.table)
        return len(there.keys) == len(self._table.keys) and np.array_equal(there.order, self._order)

    def _write(self, manifest: Manifest) -> None:
        if self._shelf is not None and self._shelf.manifest == manifest:
            stored = cache_manifest.read_manifest(self.folder)
            if stored == manifest:
                return
        cache_manifest.write_manifest(self.folder, manifest)
        if self._shelf is None:
            self._shelf = Shelf(self.folder, manifest)
        else:
            self._shelf.use(manifest)

    def _compute(
        self,
        jobs: list[Ints],
        estimate: CacheEstimate,
        lock: WriterLock,
        say: Callable[[str], object] | None,
        progress: Callable[[int, int], object] | None,
        loads: Loads,
    ) -> int:
        total = sum(map(len, jobs))

        def measured(rate: float) -> None:
            if say is not None:
                say(str(self._estimate(jobs, rate)))

        if not total:
            if say is not None:
                say(str(estimate))
            return 0
        self._samples.seeded = self._randomness == "unseeded"
        batches = ViewBatches(self._samples, self._input, self._target, self._workers)
        filling = CacheFilling(self._extractor, batches, self._layout, self._shard_samples())
        begun, done = time.perf_counter(), 0
        with self._samples.reading():
            for shard in filling.shards(jobs, self._order, lock.forget, measured, progress, loads):
                self._keep(shard, done, total, (done + shard.count) / (time.perf_counter() - begun))
                done += shard.count
        return total

    def _keep(self, shard: PendingShard, done: int, total: int, rate: float) -> None:
        """Write a shard, then the manifest that names it."""
        manifest = self._there().manifest
        name = manifest.next_file(shard.view)
        try:
            digest, nbytes = write_shard(self.folder / name, shard.columns(), {"view": str(shard.view)})
            record = ShardRecord(name, shard.view, ranges(shard.slots()), digest, nbytes, shard.losses)
            self._write(replace(manifest, shards=(*manifest.shards, record), rate=rate))
        except StorageFull as error:
            raise StorageFull(
                f"{error}\n  kept: what was computed before, and fill() goes on from there "
                f"({done:,} of {total:,} that were missing)"
            ) from error
