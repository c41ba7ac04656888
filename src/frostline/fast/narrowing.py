"""Features in fewer bits than they were computed in, and what that costs.

Knows tensors; knows nothing of files or datasets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from frostline.checkpoint.stored import dtype_name
from frostline.errors import CacheError
from frostline.fast.features import Place
from frostline.tables import html_text

NARROW = (torch.float16, torch.bfloat16, torch.uint8)
_STEPS = 255
# A range of 8 bytes for fewer values than this would eat what 8 bits save.
_WORTH_A_RANGE = 16


@dataclass(frozen=True)
class Storage:
    """How the features of one place are kept.

    With 8 bits, the smallest and the largest value of each sample of a vector, or of each channel of each sample of a
    map, become 0 and 255; the smallest and the step between two codes are kept beside them as float32. Channels of
    fewer than 16 values share one range, and samples of fewer than 16 values stay as they are.

    Attributes:
        place: what is kept.
        dtype: the type on the disk; the place's own where nothing is narrowed.

    Example:
        >>> Storage.of(Place("pool", (512,), torch.float32), torch.uint8).nbytes
        520
    """

    place: Place
    dtype: torch.dtype

    @staticmethod
    def of(place: Place, dtype: torch.dtype | None) -> Storage:
        """How a place is kept where ``dtype`` is asked for: integers, and what is no wider already, stay as they are.

        Raises:
            CacheError: features cannot be narrowed to this type.
        """
        if dtype is None:
            return Storage(place, place.dtype)
        if dtype not in NARROW:
            raise CacheError(
                f"features cannot be kept as {dtype_name(dtype)}\n"
                f"  expected: {', '.join(map(dtype_name, NARROW))}, or None for the type that they have"
            )
        narrower = place.dtype.is_floating_point and dtype.itemsize < place.dtype.itemsize
        narrower &= dtype is not torch.uint8 or math.prod(place.shape) >= _WORTH_A_RANGE
        return Storage(place, dtype if narrower else place.dtype)

    @property
    def narrowed(self) -> bool:
        """Whether fewer bits are kept than there are."""
        return self.dtype is not self.place.dtype

    @property
    def ranges(self) -> tuple[int, ...]:
        """The shape of one sample's smallest values, and of its steps; without meaning unless 8 bits are kept."""
        shape = self.place.shape
        return (shape[0] if self._by_channel else 1, *(1 for _ in shape[1:]))

    @property
    def _by_channel(self) -> bool:
        shape = self.place.shape
        return len(shape) > 1 and math.prod(shape[1:]) >= _WORTH_A_RANGE

    @property
    def parts(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """Shape of one sample and type of each tensor that is kept."""
        kept = ((self.place.shape, self.dtype),)
        if not self.narrowed or self.dtype is not torch.uint8:
            return kept
        return (*kept, (self.ranges, torch.float32), (self.ranges, torch.float32))

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.parts)

    def narrow(self, features: Tensor) -> tuple[Tensor, ...]:
        """What is kept of the features of a batch.

        Raises:
            CacheError: a value is too large for the type, or not a number where 8 bits are kept; the place is named.
        """
        if not self.narrowed:
            return (features,)
        if self.dtype is torch.uint8:
            return self._codes(features)
        kept = features.to(self.dtype)
        # What was infinite before may stay so; what has become so is lost.
        lost = kept.isinf() & features.isfinite()
        if lost.any():
            raise CacheError(
                f"{self.place.name}: {int(lost.sum())} features are too large for {dtype_name(self.dtype)}\n"
                f"  found: up to {features[lost].abs().max().item():.4g}\n"
                f"  expected: at most {torch.finfo(self.dtype).max:.4g}\n"
                "  fix: dtype=torch.bfloat16, torch.uint8 or None"
            )
        return (kept,)

    def _codes(self, features: Tensor) -> tuple[Tensor, ...]:
        flat = features.to(torch.promote_types(features.dtype, torch.float32))
        inner = tuple(range(2 if self._by_channel else 1, flat.dim()))
        low, high = flat.amin(inner, keepdim=True), flat.amax(inner, keepdim=True)
        low, step = low.float(), ((high - low) / _STEPS).float()
        if not (low.isfinite().all() and step.isfinite().all()):
            raise CacheError(
                f"{self.place.name}: features are NaN, infinite or too far apart, and cannot be kept in 8 bits\n"
                "  fix: dtype=None, or check the input and the weights"
            )
        codes = ((flat - low) / torch.where(step > 0, step, 1)).round().clamp(0, _STEPS).to(torch.uint8)
        return codes, low, step

    def widen(self, kept: Sequence[Tensor]) -> Tensor:
        """The features of a batch in the place's own type, from what is kept of them."""
        if not self.narrowed:
            return kept[0]
        if self.dtype is not torch.uint8:
            return kept[0].to(self.place.dtype)
        codes, low, step = kept
        return codes.to(torch.float32).mul_(step).add_(low).to(self.place.dtype)


@dataclass
class Losses:
    """What narrowing has changed so far in one place; sums, so that those of shards can be added."""

    largest: float = 0.0
    squares_lost: float = 0.0
    squares: float = 0.0

    def add(self, before: Tensor, after: Tensor) -> None:
        """Count a batch."""
        wide = before.double()
        lost = (wide - after.double()).nan_to_num_(0.0, 0.0, 0.0)
        self.largest = max(self.largest, lost.abs().max().item() if lost.numel() else 0.0)
        self.squares_lost += lost.square_().sum().item()
        self.squares += wide.nan_to_num(0.0, 0.0, 0.0).square_().sum().item()

    def merged(self, other: Losses) -> Losses:
        """Both together."""
        return Losses(
            max(self.largest, other.largest), self.squares_lost + other.squares_lost, self.squares + other.squares
        )


@dataclass(frozen=True)
class PlaceCost:
    """What narrowing costs in one place.

    Attributes:
        max_abs: the largest difference between a feature and what comes back.
        rms: the root mean square of the differences, as a share of that of the features.
    """

    max_abs: float
    rms: float


@dataclass(frozen=True)
class NarrowingCost:
    """What narrowing costs, measured on every feature that was kept; prints itself in a line.

    Attributes:
        dtype: what was asked for.
        places: name to cost, for each place that was narrowed.

    Example:
        >>> print(NarrowingCost("float16", {"pool": PlaceCost(0.001, 0.00021)}))
        float16: pool is off by 0.021 % (rms), by 0.001 at most
    """

    dtype: str
    places: Mapping[str, PlaceCost] = field(default_factory=dict[str, PlaceCost])

    @property
    def max_abs(self) -> float:
        """The largest difference of all places."""
        return max((cost.max_abs for cost in self.places.values()), default=0.0)

    @property
    def rms(self) -> float:
        """The largest relative root mean square of all places."""
        return max((cost.rms for cost in self.places.values()), default=0.0)

    @staticmethod
    def of(dtype: str, losses: Mapping[str, Losses]) -> NarrowingCost:
        """The cost that sums amount to."""
        return NarrowingCost(
            dtype,
            {
                name: PlaceCost(each.largest, math.sqrt(each.squares_lost / each.squares) if each.squares else 0.0)
                for name, each in losses.items()
            },
        )

    def to_json(self) -> dict[str, Any]:
        """The cost as JSON-ready values."""
        places = {name: {"max_abs": cost.max_abs, "rms": cost.rms} for name, cost in self.places.items()}
        return {"dtype": self.dtype, "places": places}

    def __str__(self) -> str:
        told = [
            f"{name} is off by {cost.rms:.2g} (rms), by {cost.max_abs:.3g} at most"
            if cost.rms < 1e-6
            else f"{name} is off by {100 * cost.rms:.2g} % (rms), by {cost.max_abs:.3g} at most"
            for name, cost in self.places.items()
        ]
        return f"{self.dtype}: {'; '.join(told) or 'nothing was narrowed'}"

    def _repr_html_(self) -> str:
        return html_text(self)
