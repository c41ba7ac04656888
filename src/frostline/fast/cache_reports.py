"""What filling a cache would take, and what it has taken, in a line each.

Knows figures; knows nothing of how they come about.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from frostline.errors import CacheError, name_some
from frostline.fast.narrowing import NarrowingCost
from frostline.tables import html_text


@dataclass(frozen=True)
class CacheEstimate:
    """What filling a cache would take; prints itself in a line.

    Attributes:
        folder: where it lies.
        samples: how many the dataset has.
        views: of each of them.
        nbytes: what it will take on the disk when it is full.
        missing: how many samples, counted once a view, are still to be computed.
        missing_bytes: what they will take.
        free: bytes that are free there now.
        limit: the most that it may take.
        seconds: how long the missing ones will take; ``None`` as long as nothing was measured.
        limited: whether somebody has asked for the limit; otherwise it is half of what is free.
    """

    folder: Path
    samples: int
    views: int
    nbytes: int
    missing: int
    missing_bytes: int
    free: int
    limit: int
    seconds: float | None = None
    limited: bool = True

    @property
    def fits(self) -> bool:
        """Whether it stays within the limit."""
        return self.missing == 0 or self.nbytes <= self.limit

    def refuse_over_limit(self, dtype: torch.dtype | None) -> None:
        """Refuse what does not fit.

        Args:
            dtype: what features are narrowed to already.

        Raises:
            CacheError: it would take more than the limit.
        """
        if self.fits:
            return
        narrower = "" if dtype is torch.uint8 else "dtype=torch.float16 or torch.uint8, "
        fewer = "" if self.views == 1 else "fewer views, "
        raise CacheError(
            f"the features would take {size(self.nbytes)} in {self.folder}\n"
            f"  found: a limit of {size(self.limit)}{'' if self.limited else ', half of what is free'}; "
            f"{size(self.free)} are free\n"
            f"  fix: {narrower}{fewer}limit={self.nbytes} or another folder"
        )

    def to_json(self) -> dict[str, Any]:
        """The estimate as JSON-ready values."""
        return {**vars(self), "folder": str(self.folder), "fits": self.fits}

    def __str__(self) -> str:
        views = f" x {self.views} views" if self.views > 1 else ""
        whole = f"features of {self.samples:,} samples{views}: {size(self.nbytes)} in {self.folder}"
        if not self.missing:
            return f"{whole}, all there"
        every = self.missing == self.samples * self.views
        todo = "all to compute" if every else f"{self.missing:,} to compute ({size(self.missing_bytes)})"
        takes = "" if self.seconds is None else f", about {duration(self.seconds)}"
        return f"{whole}, {todo}{takes}; {size(self.free)} free, limit {size(self.limit)}"

    def _repr_html_(self) -> str:
        return html_text(self)


@dataclass(frozen=True)
class FillReport:
    """What filling a cache has done; prints itself.

    Attributes:
        computed: samples, counted once a view, that were computed.
        reused: samples that were there.
        damaged: files that were damaged and computed again.
        moved: samples of a random transform whose augmentation is that of the index at which they stood before.
        seconds: how long it took.
        nbytes: what the cache takes on the disk.
        narrowing: what narrowing has cost, where features were narrowed.
    """

    computed: int
    reused: int
    damaged: tuple[str, ...]
    moved: int
    seconds: float
    nbytes: int
    narrowing: NarrowingCost | None = field(default=None)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        cost = None if self.narrowing is None else self.narrowing.to_json()
        return {**vars(self), "damaged": list(self.damaged), "narrowing": cost}

    def __str__(self) -> str:
        done = f"{self.computed:,} computed in {duration(self.seconds)}, {self.reused:,} reused"
        lines = [f"{done}: {size(self.nbytes)} of features"]
        if self.damaged:
            lines.append(f"damaged, and computed again: {name_some(self.damaged)}")
        if self.moved:
            lines.append(f"{self.moved:,} samples have moved, and keep the augmentation of where they stood")
        if self.narrowing is not None:
            lines.append(f"kept as {self.narrowing}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return html_text(self)


def free_at(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    path = folder.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def size(nbytes: int) -> str:
    """Bytes as one reads them.

    Example:
        >>> size(1_999_000), size(12)
        ('2.0 MB', '12 bytes')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= unit:
            return f"{nbytes / unit:,.1f} {name}"
    return f"{nbytes} bytes"


def duration(seconds: float) -> str:
    """Seconds as one reads them.

    Example:
        >>> duration(0.25), duration(95), duration(7300)
        ('0.2 s', '2 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
