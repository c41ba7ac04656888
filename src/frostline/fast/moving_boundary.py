"""Cached features at a boundary that moves while a model trains, by a schedule or by what converged.

Knows when features are worth keeping; knows nothing of what moves the boundary.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from frostline.errors import NoPrefix
from frostline.fast.cache_reports import duration, size
from frostline.fast.feature_cache import FeatureCache
from frostline.fast.prefix import Prefix
from frostline.fast.prefix_plan import ROWS, plan
from frostline.fast.views import epoch_of
from frostline.state import names

# Below, keeping features is not worth the reading and writing.
WORTH = 1.2


class MovingBoundary:
    """The frozen prefix of a model as it is now, and its features where they are worth keeping.

    :meth:`settle` looks at the model and says in a line what it did: the cache follows a boundary that has moved, or is
    dropped where features at the new one would be used too seldom or take too much space. Between two calls
    :meth:`samples` gives what to load, and :meth:`outputs` what the model makes of it: the same bits with a cache and
    without, for the same views.

    Features lie in a folder below ``folder``, named for the boundary; those of a boundary that was left are removed.

    Args:
        model: its front is held by :func:`frostline.freeze`, by a schedule or by
            :class:`~frostline.fast.converged.Converged`. Wrappers are looked through.
        dataset: map-style; a sample is ``(input, target)``.
        folder: where features are kept.
        views: how many views of each sample, as for :class:`~frostline.fast.feature_cache.FeatureCache`.
        dtype: to keep them in less space, likewise.
        limit: the most bytes on the disk, likewise.
        rows: how many samples are computed at a time.
        workers: processes that read the dataset.
        seed: likewise.
        say: called with each line that :meth:`settle` returns.

    Attributes:
        prefix: of the model as it was when it was last settled; ``None`` if nothing in front is frozen.
        cache: its features, or ``None``.

    Example:
        >>> import tempfile
        >>> import frostline as fl
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 3), nn.Linear(3, 1))
        >>> hold = fl.freeze(model, "0", "2")
        >>> samples = [(torch.full((2,), float(i)), i) for i in range(6)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     boundary = MovingBoundary(model, samples, folder)
        ...     before = boundary.settle(epochs=9).partition(",")[0]
        ...     hold.thaw("2")
        ...     before, boundary.settle(epochs=9).partition(",")[0], boundary.settle(epochs=1)
        ('boundary at 2: 6 x 1 features', 'boundary moved from 2 to 1: 6 x 1 features', 'boundary stays at 1')
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        folder: str | Path,
        *,
        views: int = 1,
        dtype: torch.dtype | None = None,
        limit: int | None = None,
        rows: int = ROWS,
        workers: int = 0,
        seed: int = 0,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self._model, self._dataset, self._folder = names.unwrap(model), dataset, Path(folder)
        self._views, self._rows, self._say = views, rows, say
        self._options: dict[str, Any] = {"dtype": dtype, "limit": limit, "workers": workers, "seed": seed}
        self.prefix: Prefix | None = None
        self.cache: FeatureCache | None = None

    def settle(self, epochs: int) -> str:
        """Look where the boundary is now, and make the cache follow it or drop it.

        Args:
            epochs: how many are to come, as far as is known before the boundary moves again.

        Returns:
            What was done, in a line.

        Raises:
            CacheError: the folder holds something else, or the dataset cannot be used.
            StorageFull: there is no space left.
        """
        before, line = self.prefix, ""
        try:
            found = plan(self._model, default_collate([self._dataset[0][0], self._dataset[1][0]]), timing=False)
        except NoPrefix:
            self._leave()
            self.prefix = None
            return self._told(
                "nothing in front is frozen: no cache"
                if before is None
                else f"{_at(before)} is given up: nothing in front is frozen any more"
            )
        prefix = found.prefix(rows=self._rows)
        if before is not None and before.places == prefix.places and before.entries == prefix.entries:
            return self._told(f"boundary stays at {_at(before)}")
        moved = (
            f"boundary at {_at(prefix)}" if before is None else f"boundary moved from {_at(before)} to {_at(prefix)}"
        )
        self._leave()
        self.prefix = prefix
        line = f"{moved}: {self._follow(prefix, epochs)}"
        return self._told(line)

    def samples(self, epoch: int) -> Dataset[Any]:
        """What to load in an epoch, which is counted from 1: features of its view, or samples of the dataset."""
        if self.cache is not None:
            return self.cache.view(epoch - 1)
        tell = getattr(self._dataset, "set_epoch", None)
        if tell is not None:
            tell(epoch_of((epoch - 1) % self._views))
        return self._dataset

    def outputs(self, inputs: Any, *, through: Callable[..., Any] | None = None) -> Any:
        """What the model returns for a batch of :meth:`samples`, with the graph of what trains.

        Args:
            inputs: a batch of features or of inputs.
            through: what is called in place of the model: a wrapper of it.
        """
        if self.prefix is None:
            return (self._model if through is None else through)(inputs)
        if self.cache is None:
            inputs = self.prefix(inputs)
        return self.prefix.rest(inputs, through=through)

    def _follow(self, prefix: Prefix, epochs: int) -> str:
        """Keep the features of a boundary, if that is worth it; says what was done."""
        count = len(self._dataset)
        of = f"{count:,} x {self._views} features"
        used = epochs / self._views
        if used < WORTH:
            return f"no cache, because {of} would be used {used:.1f} times each"
        folder = self._folder / re.sub(r"\W+", "-", _at(prefix)).strip("-")
        cache = FeatureCache(folder, prefix, self._dataset, views=self._views, **self._options)
        estimate = cache.estimate()
        if not estimate.fits:
            return f"no cache, because {of} would take {size(estimate.nbytes)}, and the limit is {size(estimate.limit)}"
        begun = time.perf_counter()
        # What it will take is said before it starts.
        cache.fill(say=self._say)
        self.cache = cache
        took = time.perf_counter() - begun
        return (
            f"{of}, {size(cache.nbytes)}, computed in {duration(took)}; "
            f"{epochs} epochs without them would take {duration(took / self._views * epochs)}"
        )

    def _leave(self) -> None:
        if self.cache is not None:
            shutil.rmtree(self.cache.folder, ignore_errors=True)
            self.cache = None

    def _told(self, line: str) -> str:
        if self._say is not None:
            self._say(line)
        return line


def _at(prefix: Prefix) -> str:
    """Where a boundary lies: the last module that gives something across it."""
    return ", ".join(place.name for place in prefix.places)
