"""One tensor of a checkpoint: its shape and dtype are known, its values are fetched when they are asked for.

Knows tensors and bytes; knows nothing of formats, names or models.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from frostline.state.digest import digest
from frostline.state.shards import is_distributed, whole


@dataclass(frozen=True, eq=False)
class StoredTensor(ABC):
    """A tensor that lies somewhere else.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
        place: equal for two entries of one checkpoint if and only if they are one tensor there (tied weights).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    place: Hashable

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes its elements take."""
        return self.numel * self.dtype.itemsize

    @abstractmethod
    def read(self) -> Tensor:
        """The values: a contiguous tensor on the CPU, in memory that nothing else uses.

        Raises:
            CorruptCheckpoint: the file has changed or is damaged.
        """

    def pieces(self, most: int) -> Iterator[Tensor]:
        """The values in row-major order, as flat ``uint8`` tensors of ``most`` bytes, the last one shorter.

        A piece is valid until the next one is asked for: a reader may use its memory again.

        Raises:
            CorruptCheckpoint: the file has changed or is damaged.
        """
        flat = as_bytes(self.read())
        for start in range(0, flat.numel(), most):
            yield flat[start : start + most]

    def digest(self) -> str:
        """The digest of the values; see :func:`frostline.state.digest.digest`."""
        return digest(self.read())


@dataclass(frozen=True, eq=False)
class InMemory(StoredTensor):
    """A tensor that is at hand already: of a state dict, or of a file that can only be read whole."""

    value: Tensor

    def read(self) -> Tensor:
        """A copy of the values on the CPU. Those of a tensor that processes share, each of them has to ask for."""
        return whole(self.value.detach()).to("cpu").clone(memory_format=torch.contiguous_format)


def in_memory(value: Tensor) -> InMemory:
    """A tensor that is at hand, as one of a checkpoint.

    Example:
        >>> entry = in_memory(torch.zeros(2, 3))
        >>> entry.shape, entry.nbytes
        ((2, 3), 24)
    """
    place: Hashable = id(value)
    if is_distributed(value):
        return InMemory(tuple(value.shape), value.dtype, place, value)
    if value.layout is torch.strided and not value.is_meta and value.numel():
        place = (
            str(value.device),
            value.data_ptr(),
            tuple(value.shape),
            value.stride(),
            value.dtype,
            value.is_conj(),
            value.is_neg(),
        )
    return InMemory(tuple(value.shape), value.dtype, place, value)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a type without its module.

    Example:
        >>> dtype_name(torch.float32)
        'float32'
    """
    return str(dtype).removeprefix("torch.")


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor as a flat ``uint8`` view.

    Example:
        >>> as_bytes(torch.tensor([1], dtype=torch.int16)).tolist()
        [1, 0]
    """
    # A single element counts as contiguous whatever its stride, and then cannot be viewed as bytes.
    return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)
