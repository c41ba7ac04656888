"""What crosses the boundary between a frozen prefix and the rest of a model.

Knows tensors and samples; knows nothing of how they are computed or kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Features: TypeAlias = "tuple[Tensor, ...]"


@dataclass(frozen=True)
class Place:
    """One tensor that crosses the boundary.

    Attributes:
        name: the dotted path of the module that gives it, with ``[key]`` behind where it gives several; or ``input:0``,
            ``input:NAME`` for an input of the model that the rest reads itself.
        shape: of one sample, without the first dimension.
        dtype: its type.

    Example:
        >>> Place("layer3", (1024, 14, 14), torch.float32).nbytes
        802816
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * self.dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        """The place as JSON-ready values."""
        return {"name": self.name, "shape": list(self.shape), "dtype": str(self.dtype).removeprefix("torch.")}

    def __str__(self) -> str:
        return f"{self.name} {self.shape} {str(self.dtype).removeprefix('torch.')}"


class Extractor(Protocol):
    """What computes features: a :class:`~frostline.fast.prefix.Prefix`, or whatever keeps the same promises.

    The features of a sample depend on that sample alone, to the bit: not on the others of its batch, on their number or
    on its place among them.
    """

    @property
    def places(self) -> Sequence[Place]:
        """What it gives, in order."""
        ...

    @property
    def rows(self) -> int:
        """How many samples it computes at a time."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """All that features depend on beside the samples, by name; equal identities give equal features.

        ``weights`` is the combined digest of the prefix; the other names are short words such as ``variant``.
        """
        ...

    @property
    def entries(self) -> Mapping[str, str]:
        """Path of each tensor of the prefix to its digest, to say *which* weights differ."""
        ...

    def __call__(self, inputs: Any) -> Features:
        """Compute the features of a batch of any number of samples; the first dimension of each is the sample."""
        ...


def filled_up(part: Tensor, rows: int) -> Tensor:
    """So many samples: copies of the last one are added to those there are.

    Kernels may choose another way for another number of samples; with always the same one, a sample has the same bits.

    Example:
        >>> filled_up(torch.tensor([[1.0], [2.0]]), 4).flatten().tolist()
        [1.0, 2.0, 2.0, 2.0]
    """
    missing = rows - len(part)
    return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
