"""The features of a frozen prefix as the settings of a run ask for them: where they are kept, and how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from frostline.errors import CacheError
from frostline.fast import FeatureCache, Prefix
from frostline.fast.cache_manifest import REBUILD
from frostline.finetune.config import FinetuneConfig


def features_place(config: FinetuneConfig, folder: Path) -> tuple[Path, Path | None]:
    """Where features are kept, and what is to be removed when the run is done, if anything.

    Example:
        >>> features_place(FinetuneConfig(cache="kept"), Path("run"))[1] is None
        True
        >>> features_place(FinetuneConfig(), Path("run"))[1].name
        'features'
    """
    own = folder / "features" if config.cache is None else None
    return own or Path(str(config.cache)), own


def asked_cache(folder: Path, prefix: Prefix, dataset: Any, config: FinetuneConfig, views: int = 1) -> FeatureCache:
    """A cache in a folder. A sample that has moved is computed again, as it would be without a cache.

    Args:
        folder: of the cache.
        prefix: what computes the features.
        dataset: the samples.
        config: the settings.
        views: of each sample.

    Raises:
        CacheError: the folder cannot be used; the fix is an option of the command.
    """
    try:
        return FeatureCache(
            folder,
            prefix,
            dataset,
            views=views,
            workers=config.workers,
            seed=config.seed,
            positions="same",
            rebuild=config.rebuild_cache,
        )
    except CacheError as error:
        fix = "another --cache-folder, or --rebuild-cache to replace what is there"
        raise type(error)(str(error).replace(REBUILD, fix)) from error
