"""What layers are to be turned into, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True)
class FrozenNorm:
    """Always the running statistics, in every mode: :class:`~frostline.norms.convert.frozen.FrozenBatchNorm`."""


@dataclass(frozen=True)
class GroupNorm:
    """Statistics of each sample by itself: :class:`torch.nn.GroupNorm`. The model has to be trained for it.

    Attributes:
        groups: how many; ``None`` takes the largest divisor of the channels up to 32, as far as that leaves a group
            more than a few values.
    """

    groups: int | None = None


@dataclass(frozen=True)
class SyncNorm:
    """In train mode the statistics of all processes: :class:`torch.nn.SyncBatchNorm`.

    Attributes:
        process_group: which processes; ``None`` is all of them.
    """

    process_group: Any = None


@dataclass(frozen=True)
class PlainNorm:
    """Batch norm as it comes with torch: the way back from synchronized and from frozen layers.

    Attributes:
        dims: 1, 2 or 3 for ``BatchNorm1d``, ``2d`` or ``3d``, for layers that do not say what they were: those that
            torch or timm made. ``None`` reads it off the layers around, where these leave no doubt.
    """

    dims: Literal[1, 2, 3] | None = None

    def __post_init__(self) -> None:
        if self.dims not in {None, 1, 2, 3}:
            raise ValueError(f"PlainNorm: dims is 1, 2 or 3, not {self.dims!r}")


@dataclass(frozen=True)
class NoTracking:
    """No running statistics at all: the batch decides in eval mode too."""


Target: TypeAlias = FrozenNorm | GroupNorm | SyncNorm | PlainNorm | NoTracking
