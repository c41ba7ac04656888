"""Features that lie in a folder, read by view and index without the model or the images they came from.

Knows files and samples; knows nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from frostline.checkpoint.stored import dtype_name
from frostline.errors import CacheError, CorruptCache
from frostline.fast.cache_manifest import NAME, read_both
from frostline.fast.features import Features, Place
from frostline.fast.narrowing import Losses, NarrowingCost
from frostline.fast.sample_parts import Form, together
from frostline.fast.sample_table import Ints
from frostline.fast.shelf import Shelf
from frostline.tables import html_text


class CachedFeatures:
    """Features in a folder, read only; several processes may read while one writes.

    Memory stays bounded: shards are mapped, and the operating system drops pages of them that are not in use.

    Attributes:
        folder: where they lie.
        views: how many views of each sample there are.
    """

    def __init__(self, folder: str | os.PathLike[str], shelf: Shelf | None, order: Ints, views: int) -> None:
        self.folder = Path(folder)
        self.views = views
        self._shelf = shelf
        self._order = order

    @staticmethod
    def open(folder: str | os.PathLike[str]) -> CachedFeatures:
        """Open what a folder holds, without the model or the dataset that it was made of.

        Raises:
            CacheError: it holds no features.
            CacheMismatch: another version of Frostline made it.
            CorruptCache: it is damaged.
        """
        folder = Path(folder)
        both = read_both(folder)
        if both is None:
            raise CacheError(f"{folder} holds no features\n  fix: FeatureCache(folder, extractor, dataset).fill()")
        manifest, table = both
        return CachedFeatures(folder, Shelf(folder, manifest), table.order, manifest.views)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def places(self) -> tuple[Place, ...]:
        """What each sample has features of, in order."""
        return self._there().manifest.key.places

    @property
    def nbytes(self) -> int:
        """Bytes on the disk now."""
        return 0 if self._shelf is None else self._shelf.manifest.nbytes + (self.folder / NAME).stat().st_size

    @property
    def narrowing(self) -> NarrowingCost | None:
        """What narrowing has cost, measured on every feature that was kept; ``None`` where nothing was narrowed."""
        if self._shelf is None:
            return None
        manifest = self._shelf.manifest
        total: dict[str, Losses] = {}
        for shard in manifest.shards:
            for name, losses in shard.losses.items():
                total[name] = total.get(name, Losses()).merged(losses)
        return NarrowingCost.of(manifest.key.dtype, total) if total else None

    def view(self, number: int) -> ViewDataset:
        """The samples under one view, as a dataset of ``(features, target)``.

        Features are a tensor where there is one place, and a tuple of tensors otherwise; of a dataset without targets a
        sample is the features alone. It can be sent to the workers of a loader.

        Args:
            number: taken modulo the number of views, so that it may be the number of an epoch.
        """
        self._there()
        return ViewDataset(self, number % self.views)

    def batch(self, indices: Sequence[int] | Tensor | Ints, view: int = 0) -> tuple[Features, Any]:
        """Read many samples at once.

        Args:
            indices: of the samples, in any order, also repeatedly.
            view: taken modulo the number of views.

        Returns:
            The features of each place, shape (samples, ...), in memory of their own; and the targets as a loader would
            collate them, ``None`` where there are none.

        Raises:
            IndexError: there is no such sample.
            CacheError: a sample is not computed yet.
            CorruptCache: a file is damaged.
        """
        view %= self.views
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self._order):
            raise IndexError(f"samples {int(wanted.min())} to {int(wanted.max())} were asked of {len(self._order):,}")
        slots = self._order[wanted]
        shelf = self._there()
        try:
            kept = shelf.rows(view, slots, shelf.layout.wanted)
        except CacheError as error:
            if isinstance(error, CorruptCache):
                raise
            absent = wanted[~shelf.holds(view, slots)]
            raise CacheError(
                f"{len(absent)} samples of view {view} are not computed yet, sample {int(absent[0])} first, in "
                f"{self.folder}\n  fix: fill()"
            ) from error
        target = together(shelf.layout.targets(kept), shelf.layout.target, batch=True)
        return shelf.layout.widened(kept), target

    def _there(self) -> Shelf:
        if self._shelf is None:
            raise CacheError(f"{self.folder} holds no features yet\n  fix: fill()")
        return self._shelf

    def __str__(self) -> str:
        dtypes = sorted({dtype_name(place.dtype) for place in self.places})
        narrowed = self._there().manifest.key.dtype
        kept = f", kept as {narrowed}" if narrowed else ""
        names = ", ".join(place.name for place in self.places)
        return (
            f"features of {len(self):,} samples x {self.views} views at {names} ({', '.join(dtypes)}{kept}): "
            f"{self.nbytes / 1e6:,.1f} MB in {self.folder}"
        )

    def _repr_html_(self) -> str:
        return html_text(self)


class ViewDataset(Dataset[Any]):
    """The cached samples under one view; see :meth:`CachedFeatures.view`."""

    def __init__(self, features: CachedFeatures, view: int) -> None:
        # Of a cache that can be written, the part that reads alone: neither model nor images go to workers.
        self._features = CachedFeatures(features.folder, features._there(), features._order, features.views)
        self.number = view

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, index: int) -> Any:
        """One sample, in memory of its own."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Many samples with one reading, as loaders ask for them."""
        count = len(self)
        wanted = [index + count if -count <= index < 0 else index for index in indices]
        features, targets = self._features.batch(wanted, self.number)
        form = self._features._there().layout.target
        return [_sample(form, features, targets, row) for row in range(len(wanted))]


def _sample(form: Form, features: Features, targets: Any, row: int) -> Any:
    inputs = features[0][row] if len(features) == 1 else tuple(tensor[row] for tensor in features)
    if form.kind == "none":
        return inputs
    return inputs, _row(targets, form, row)


def _row(target: Any, form: Form, row: int) -> Any:
    if form.kind == "none":
        return None
    if form.kind == "dict":
        return {key: _row(target[key], part, row) for key, part in form.parts}
    if form.kind in ("tuple", "list"):
        rows = [_row(each, part, row) for each, (_, part) in zip(target, form.parts, strict=True)]
        return tuple(rows) if form.kind == "tuple" else rows
    return target[row] if form.kind == "tensor" else target[row].item()
