"""The features that the heads of several tasks train on: each image runs through the frozen trunk once a view."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from frostline.errors import ModelError, NoPrefix, ShortcutDiffers, name_some
from frostline.fast import Prefix, plan
from frostline.fast.heads import Given
from frostline.finetune.asked_cache import asked_cache, features_place
from frostline.finetune.asked_prefix import CHECKED, asked_prefix
from frostline.finetune.config import ConfigError
from frostline.finetune.image_folder import ImageDataset
from frostline.finetune.progress import Progress
from frostline.finetune.tasks_config import TasksConfig
from frostline.freezing.verbs import frozen
from frostline.runs.time_spent import TimeSpent

# The trunk runs on so many images at a time, whatever the batches of the heads: features do not depend on those.
ROWS = 32


@dataclass(frozen=True)
class TasksFeatures:
    """What heads train and validate on.

    Attributes:
        train: features to train on, under all views.
        val: features to validate on, without augmentation; ``None`` takes those of ``train``.
        folder: where they lie, if they are to be removed when the run is done.
    """

    train: Given
    val: Given | None = None
    folder: Path | None = None

    def discard(self) -> None:
        """Remove features that were kept for this run alone."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def features_for(
    trunk: nn.Module,
    plain: ImageDataset,
    augmented: ImageDataset,
    config: TasksConfig,
    folder: Path,
    progress: Progress,
    spent: TimeSpent | None = None,
) -> TasksFeatures:
    """Compute the features of all images, without augmentation and under as many views as were asked for.

    Args:
        trunk: the model without its classifier; left as it is.
        plain: the images without augmentation.
        augmented: the same with it.
        config: the settings.
        folder: of the run; features go into it unless the settings name another folder.
        progress: told in a line what is kept.
        spent: is told how long images were waited for.

    Raises:
        ModelError: what the trunk gives for an image depends on the others of its batch, or is not the same twice.
        CacheError: the folder that was named cannot be used, or features do not fit on the disk.
    """
    settings, spent = config.settings, spent or TimeSpent()
    if not settings.use_cache and settings.views is not None:
        raise ConfigError(
            "--no-cache with --views and --task: heads train on views that are kept.\n  fix: leave out one of them"
        )
    with frozen(trunk, "*"):
        prefix = _prefix(trunk, plain, config)
        if not settings.use_cache:
            loader: DataLoader[Any] = DataLoader(plain, batch_size=ROWS, num_workers=settings.workers)
            parts = [prefix(images.to(prefix.device))[0].cpu() for images, _ in loader]
            return TasksFeatures((torch.cat(parts),))
        place, own = features_place(settings, folder)
        val = asked_cache(place / "val", prefix, plain, settings)
        caches = [val]
        if settings.views is not None:
            views = min(settings.views, settings.epochs)
            caches.insert(0, asked_cache(place / "train", prefix, augmented, settings, views))
        for cache in caches:
            cache.fill(progress.say, progress.features, lambda batches: spent.waits("loading", batches))
    train = caches[0]
    return TasksFeatures(train, None if train is val else val, own)


def _prefix(trunk: nn.Module, plain: ImageDataset, config: TasksConfig) -> Prefix:
    """The whole trunk as a prefix, proven to give an image the same features in any batch."""
    device = next((parameter.device for parameter in trunk.parameters()), torch.device("cpu"))
    samples = default_collate([plain[index % len(plain)][0] for index in range(max(2, min(CHECKED, len(plain))))])
    try:
        found = plan(trunk, samples[:2].to(device), timing=False)
        if found.rest:
            raise NoPrefix(name_some([str(row) for row in found.rest], most=2))
        return asked_prefix(found, samples.to(device), config.settings, rows=ROWS)
    except (NoPrefix, ShortcutDiffers) as error:
        raise ModelError(
            "--task: heads cannot share features, because an image has no features of its own in this trunk\n"
            f"  found: {str(error).splitlines()[0]}\n  fix: another model, or one run for each task without --task"
        ) from error
