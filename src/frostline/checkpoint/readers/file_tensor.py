"""A tensor that lies in a run of bytes of a file, with any strides.

Knows bytes, shapes and strides; knows nothing of formats or names.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from frostline.checkpoint.readers.source import Extent, fresh, fresh_bytes
from frostline.checkpoint.stored import StoredTensor

# Torch counts elements and bytes in 64 bits, with a sign.
MOST = 2**63
# Dimensions of tensors that torch can copy with strides.
MOST_DIMENSIONS = 64
# A tensor can repeat its elements (`expand`), and so take more memory than its file: up to so many bytes.
MOST_REPEATED = 2**30


class Misfit(ValueError):
    """A shape, strides or an offset that no tensor can have in the bytes that are there."""


@dataclass(frozen=True, eq=False)
class FileTensor(StoredTensor):
    """A tensor in a file.

    Attributes:
        extent: the bytes that it lies in.
        offset: where in them it begins, in bytes.
        stride: in elements; nothing if it is contiguous.
    """

    extent: Extent
    offset: int
    stride: tuple[int, ...] | None = None

    def read(self) -> Tensor:
        """The values, contiguous, in memory of their own."""
        path = self.extent.source.path
        if self.stride is None:
            values, flat = fresh_bytes(self.shape, self.dtype, path)
            if flat.numel():
                self.extent.fill(self.offset, flat)
            return values
        span = 1 + reach(self.shape, self.stride)
        held, flat = fresh_bytes((span,), self.dtype, path)
        self.extent.fill(self.offset, flat)
        values = fresh(self.shape, self.dtype, path)
        return values.copy_(held.as_strided(self.shape, self.stride))

    def pieces(self, most: int) -> Generator[Tensor, None, None]:
        """The bytes, through one buffer where they lie in the file one after another."""
        if self.stride is not None:
            yield from super().pieces(most)
        elif self.nbytes:
            yield from self.extent.pieces(self.offset, self.nbytes, most)


def reach(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many elements the last one of a tensor lies behind the first."""
    return sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def check_shape(shape: object) -> int:
    """Count the elements of a shape that a file names.

    Raises:
        Misfit: torch cannot have it.
    """
    if not isinstance(shape, (tuple, list)):
        raise Misfit("a shape that is none")
    numel = extent = 1
    for size in shape:
        if type(size) is not int or size < 0:  # a bool is no size
            raise Misfit("a shape that is none")
        numel *= size
        extent *= size or 1
        if extent >= MOST:
            raise Misfit("a shape of more elements than can be counted")
    return numel


def check_strides(shape: tuple[int, ...], stride: object) -> tuple[int, bool]:
    """Check the strides that a file names.

    Returns:
        How far the last element lies behind the first, and whether the tensor is contiguous.

    Raises:
        Misfit: they do not fit the shape.
    """
    if not isinstance(stride, tuple) or len(stride) != len(shape):
        raise Misfit("strides that do not fit the shape")
    far, step, contiguous = 0, 1, True
    for size, found in zip(reversed(shape), reversed(stride), strict=True):
        if type(found) is not int or not 0 <= found < MOST:
            raise Misfit("strides that do not fit the shape")
        far += (size - 1) * found
        if size != 1:
            contiguous = contiguous and found == step
            step *= size
    return far, contiguous
