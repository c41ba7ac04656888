"""What a frozen prefix spares a phase: the graph through it, and computing it again for samples that were seen.

Used where the head alone trains and the prefix is proven to give what the model gives; otherwise the phase runs the
model as it is.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from frostline.errors import CacheError, NoPrefix, ShortcutDiffers, StorageFull, name_some
from frostline.fast import FeatureCache, Prefix, plan
from frostline.fast.moving_boundary import WORTH
from frostline.fast.views import epoch_of
from frostline.finetune.asked_cache import asked_cache, features_place
from frostline.finetune.asked_prefix import CHECKED, asked_prefix
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.problem import Phase
from frostline.finetune.progress import Progress
from frostline.runs.time_spent import TimeSpent
from frostline.tasks.task_model import TaskModel

# As many views keep an augmentation honest: `docs/benchmarks.md` has what they buy.
MOST_VIEWS = 8


@dataclass
class Shortcut:
    """How a phase gets from samples to logits.

    Attributes:
        train: what is loaded to train on: samples, or their features.
        val: likewise, to validate.
        views: how many draws of the augmentation epochs go through in turn; 1 of what is not random.
        prefix: what computes features; without, the model runs as a whole.
        cached: whether features are loaded instead of samples.
        folder: where they lie, if they are to be removed when the run is done.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    views: int
    prefix: Prefix | None = None
    cached: bool = False
    folder: Path | None = None

    def logits(self, wrapped: Callable[..., Tensor], inputs: Any, task: str) -> Tensor:
        """The logits of a batch, with the graph of what trains.

        Args:
            wrapped: the model, or a wrapper of it.
            inputs: what was loaded; where the prefix runs every time, what it gave for that.
            task: the head.
        """
        if self.prefix is None:
            return wrapped(inputs, task)
        return self.prefix.rest(inputs, through=wrapped)

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of this epoch from now on; epochs are counted from 1."""
        tell = getattr(self.train, "set_epoch", None)
        if tell is not None:
            tell(epoch)

    def discard(self) -> None:
        """Remove features that were kept for this run alone."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class ViewsInTurn(Dataset[Any]):
    """A dataset whose epochs go through so many draws of its augmentation in turn.

    Loaders of accelerate tell the dataset the epoch by themselves, so it has to know the turn.

    Example:
        >>> class Samples(Dataset):
        ...     def set_epoch(self, epoch):
        ...         print("draws", epoch)
        >>> for epoch in (1, 2, 3):
        ...     ViewsInTurn(Samples(), 2).set_epoch(epoch)
        draws 1
        draws 2
        draws 1
    """

    dataset: Any
    views: int

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of this epoch, which is counted from 1, from now on."""
        self.dataset.set_epoch(epoch_of((epoch - 1) % self.views))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


@dataclass
class CachedViews(Dataset[Any]):
    """The features of a dataset, under the view of the epoch."""

    cache: FeatureCache
    epoch: int = 1
    _view: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.set_epoch(self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Give the features of this epoch, which is counted from 1, from now on."""
        self.epoch = epoch
        self._view = self.cache.view(epoch - 1)

    def __len__(self) -> int:
        return len(self.cache)

    def __getitem__(self, index: int) -> Any:
        return self._view[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return self._view.__getitems__(indices)


def whole_model(phase: Phase, config: FinetuneConfig) -> Shortcut:
    """A phase in which nothing is spared; its epochs see the same views as with a cache."""
    if not hasattr(phase.train, "set_epoch"):
        return Shortcut(phase.train, phase.val, 1)
    most = MOST_VIEWS if phase.strategy == "head" else phase.epochs
    views = min(phase.epochs, most if config.views is None else config.views)
    return Shortcut(ViewsInTurn(phase.train, views), phase.val, views)


def shortcut_for(
    model: TaskModel,
    phase: Phase,
    config: FinetuneConfig,
    accelerator: Any,
    folder: Path,
    progress: Progress,
    spent: TimeSpent | None = None,
) -> Shortcut:
    """Find what can be spared in a phase, and compute the features that are kept.

    Nothing of the model changes, nor any random state. It is called with the phase's hold in place.

    Args:
        model: the trunk with its heads, on the device it trains on.
        phase: what to train on.
        config: the settings.
        accelerator: of the run.
        folder: of the run; features go into it unless the settings name another folder.
        progress: told in a line what is kept and what it brings.
        spent: is told how long samples were waited for.

    Raises:
        FastError: a way to compute the prefix was asked for that this model cannot have.
        ShortcutDiffers: it was asked for, and gives other values than rounding explains.
        CacheError: the folder that was named cannot be used.
    """
    whole = whole_model(phase, config)
    if phase.strategy != "head" or _size(phase.val) < 2:
        return whole
    rows = config.batch_size // accelerator.num_processes
    samples = _inputs(phase.val, min(CHECKED, _size(phase.val)), accelerator.device)
    try:
        found = plan(model, (samples[:2], phase.task), timing=False)
        prefix = asked_prefix(found, samples, config, rows=rows)
    except (NoPrefix, ShortcutDiffers) as error:
        if config.prefix:
            raise
        # Without being asked for, it is only used where it is proven to be the same.
        progress.say(_why_whole(error))
        return whole
    alone = replace(whole, prefix=prefix)
    views = whole.views
    gain = _gain(phase, views)
    if not config.use_cache or accelerator.num_processes > 1 or (gain < WORTH and config.cache is None):
        return alone
    place, own = features_place(config, folder)
    train = asked_cache(place / "train", prefix, phase.train, config, views)
    val = asked_cache(place / "val", prefix, phase.val, config)
    estimates = train.estimate(), val.estimate()
    told = f"{_size(phase.train):,} x {views} + {_size(phase.val):,} features of the frozen prefix"
    needed = sum(each.missing_bytes for each in estimates)
    if needed > estimates[0].limit:
        progress.say(
            f"{told} are not kept: they would take {needed / 1e9:,.1f} GB in {place}, and "
            f"{estimates[0].free / 1e9:,.1f} GB are free"
        )
        return alone
    missing = sum(each.missing for each in estimates)
    # What is counted, not how fast it makes the run: that depends on what reading images and the rest take.
    through, without = _passes(phase, views)
    brings = f"{through:,} passes through it instead of {without:,}"
    sparing = brings if missing else "all there from a run before"
    kept = sum(each.nbytes for each in estimates)
    how_long = "are kept" if own is None else "are kept until the run is done (--cache-folder keeps them)"
    progress.say(f"{told} {how_long}, {kept / 1e6:,.1f} MB in {place}: {sparing} (--no-cache turns it off)")
    try:
        _fill(train, val, missing, progress, spent or TimeSpent())
    except (CacheError, StorageFull) as error:
        if own is None:
            raise
        # Nobody has asked for it, so it must not be what ends a run.
        progress.say(f"features are not kept after all: {str(error).splitlines()[0]}")
        shutil.rmtree(own, ignore_errors=True)
        return alone if isinstance(error, StorageFull) else whole
    return Shortcut(CachedViews(train), CachedViews(val), views, prefix, cached=True, folder=own)


def _fill(train: FeatureCache, val: FeatureCache, missing: int, progress: Progress, spent: TimeSpent) -> None:
    before = 0

    def computed(done: int, _: int) -> None:
        progress.features(before + done, missing)

    for cache in (train, val):
        report = cache.fill(progress=computed, loads=lambda batches: spent.waits("loading", batches))
        before += report.computed
        if report.damaged:
            progress.say(f"damaged, and computed again: {name_some(report.damaged)}")


def _gain(phase: Phase, views: int) -> float:
    """How many times fewer samples go through the prefix."""
    through, without = _passes(phase, views)
    return without / through


def _passes(phase: Phase, views: int) -> tuple[int, int]:
    """How many samples go through the prefix where its features are kept, and where they are not."""
    train, val = _size(phase.train), _size(phase.val)
    return views * train + val, phase.epochs * (train + val)


def _why_whole(error: NoPrefix | ShortcutDiffers) -> str:
    """Why the whole model runs every time, in a line of the model's own names."""
    first, *rest = str(error).splitlines()
    if isinstance(error, NoPrefix) and rest and not rest[0].startswith("  fix:"):
        return f"no features are kept: {rest[0].strip().replace(': trains', ' trains')}"
    return f"the whole model runs every time: {first}"


def _size(dataset: Dataset[Any]) -> int:
    sized: Any = dataset
    return len(sized)


def _inputs(dataset: Dataset[Any], count: int, device: torch.device) -> Tensor:
    return default_collate([dataset[index][0] for index in range(count)]).to(device)
