"""Features on their way from the extractor to a file: checked, narrowed, and gathered until they fill one.

Knows extractors and columns; knows nothing of folders or of what is there already.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from frostline.checkpoint.stored import dtype_name
from frostline.errors import CacheError
from frostline.fast.cache_layout import Layout
from frostline.fast.features import Extractor, Features
from frostline.fast.narrowing import Losses
from frostline.fast.sample_table import Ints
from frostline.fast.view_batches import ViewBatch
from frostline.state.digest import digest_all

# A file is written at least so often: what a kill can lose is half a minute of work.
_SECONDS = 30.0


def features_of(extractor: Extractor, batch: ViewBatch) -> Features:
    """What an extractor gives of a batch, on the CPU and without a graph.

    Raises:
        CacheError: it is not what its places say.
    """
    features = tuple(tensor.detach().cpu() for tensor in extractor(batch.inputs))
    places = tuple(extractor.places)
    found = [(tuple(tensor.shape), tensor.dtype) for tensor in features]
    if found != [((len(batch.indices), *place.shape), place.dtype) for place in places]:
        raise CacheError(
            f"the extractor gives something else than its places say, for samples from {int(batch.indices[0])} on\n"
            f"  expected: {'; '.join(map(str, places))}\n"
            f"  found: {'; '.join(f'{shape[1:]} {dtype_name(dtype)}' for shape, dtype in found)}\n"
            "  fix: places that name the shape and the type of one sample"
        )
    return features


def refuse_unsteady(extractor: Extractor, batch: ViewBatch, first: Features) -> None:
    """Compute a batch again, the other way round, and refuse an extractor that gives its samples something else.

    One run more shows both: that it is deterministic, and that it does not matter where a sample stands in its batch.

    Args:
        extractor: what computes features.
        batch: some samples.
        first: their features.

    Raises:
        CacheError: the digests differ; the places are named.
    """
    turned = features_of(extractor, replace(batch, inputs=tree_map_only(Tensor, _turned, batch.inputs)))
    names = [place.name for place in extractor.places]
    one, two = (digest_all(dict(zip(names, each, strict=True))) for each in (first, tuple(map(_turned, turned))))
    moved = [name for name in names if one[name] != two[name]]
    if moved:
        raise CacheError(
            "the features of a sample are not the same twice: the first batch, computed again the other way round, "
            f"differs at {', '.join(moved)}\n"
            "  found: the prefix is not deterministic, or it matters to it where a sample stands in its batch\n"
            "  fix: eval mode, no random layer in it, torch.use_deterministic_algorithms(True); or no cache"
        )
    if hasattr(extractor, "steady"):
        # One that keeps account of it is proven once: a second cache of the same prefix need not do so again.
        extractor.steady = True  # pyright: ignore[reportAttributeAccessIssue]


def _turned(tensor: Tensor) -> Tensor:
    return tensor.flip(0)


class PendingShard:
    """Rows of a shard that is not written yet.

    Attributes:
        view: the view that they are of.
        count: how many there are.
        losses: place to what narrowing has changed.
    """

    def __init__(self, layout: Layout, most: int) -> None:
        self._layout, self._most = layout, most
        self.view = self.count = 0
        self._begun = time.monotonic()
        self._columns: list[dict[str, Tensor]] = []
        self._slots: list[Ints] = []
        self.losses: dict[str, Losses] = {}

    def add(self, batch: ViewBatch, slots: Ints, features: Features) -> None:
        """Take in a batch."""
        kept = self._layout.kept(features, batch.targets, batch.digests)
        for storage, before, after in zip(self._layout.storages, features, self._layout.widened(kept), strict=True):
            if storage.narrowed:
                self.losses.setdefault(storage.place.name, Losses()).add(before, after)
        self.view = batch.view
        self.count += len(slots)
        self._columns.append(kept)
        self._slots.append(slots)

    @property
    def full(self) -> bool:
        """Whether it is time to write it."""
        return self.count >= self._most or time.monotonic() - self._begun > _SECONDS

    def ends(self, job: Ints) -> bool:
        """Whether its last row is the last one of a view."""
        return int(self._slots[-1][-1]) == int(job[-1])

    def columns(self) -> dict[str, Tensor]:
        """Its columns, whole."""
        return {name: torch.cat([each[name] for each in self._columns]) for name in self._columns[0]}

    def slots(self) -> Ints:
        """The slot of each row."""
        return np.concatenate(self._slots)
