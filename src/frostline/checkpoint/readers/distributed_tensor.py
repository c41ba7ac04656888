"""A tensor whose values lie in shards: boxes of its elements, each in a file of its own or in a part of one.

Knows shapes and boxes; knows nothing of indexes or formats: a shard is another tensor, opened when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, TypeGuard

import torch
from torch import Tensor

from frostline.checkpoint.readers.file_tensor import FileTensor, Misfit
from frostline.checkpoint.readers.source import fresh, fresh_bytes
from frostline.checkpoint.stored import StoredTensor

Box: TypeAlias = "tuple[tuple[int, ...], tuple[int, ...]]"
# Boxes that form no grid are compared in pairs.
_MOST_IN_PAIRS = 4096


@dataclass(frozen=True, eq=False)
class Shard:
    """A box of a tensor.

    Attributes:
        offsets: where it begins, in each dimension.
        sizes: its shape.
        open: finds its values: called when they are read, and then only.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    open: Callable[[], StoredTensor]


@dataclass(frozen=True, eq=False)
class ShardedTensor(StoredTensor):
    """A tensor that is put together out of its shards, which cover each element once.

    Attributes:
        shards: they, in the order of their offsets.
        path: where the checkpoint is, for messages.
    """

    shards: tuple[Shard, ...]
    path: Path

    def read(self) -> Tensor:
        """The values. Beside them at most one shard is in memory, and none where a shard is a run of rows."""
        values, flat = fresh_bytes(self.shape, self.dtype, self.path)
        for shard in self.shards:
            found = shard.open()
            if self._in_rows and _is_plain(found):
                begin = self._begin(shard)
                found.extent.fill(found.offset, flat[begin : begin + found.nbytes])
            else:
                _box(values, shard).copy_(found.read())
        return values

    def pieces(self, most: int) -> Generator[Tensor, None, None]:
        """The bytes, through one buffer where every shard is a run of rows."""
        opened = [found for shard in self.shards if _is_plain(found := shard.open())]
        if not opened or not self._in_rows or len(opened) < len(self.shards):
            yield from super().pieces(most)
            return
        buffer = fresh((min(most, self.nbytes),), torch.uint8, self.path)
        begins = [self._begin(shard) for shard in self.shards]
        first = 0
        for start in range(0, self.nbytes, most):
            piece = buffer[: min(most, self.nbytes - start)]
            end = start + piece.numel()
            while begins[first] + opened[first].nbytes <= start:
                first += 1
            for begin, found in zip(begins[first:], opened[first:], strict=True):
                if begin >= end:
                    break
                left, right = max(begin, start), min(begin + found.nbytes, end)
                found.extent.fill(found.offset + left - begin, piece[left - start : right - start])
            yield piece

    @cached_property
    def _in_rows(self) -> bool:
        """Whether each shard lies in the tensor as one run of elements: the first dimension alone is cut."""
        return all(shard.sizes[1:] == self.shape[1:] for shard in self.shards)

    def _begin(self, shard: Shard) -> int:
        """The byte of the tensor at which a run of rows begins."""
        rows = shard.offsets[0] if shard.offsets else 0
        return rows * math.prod(self.shape[1:]) * self.dtype.itemsize


def check_cover(shape: tuple[int, ...], boxes: Sequence[Box]) -> None:
    """See that boxes cover a tensor: each of its elements once.

    Args:
        shape: of the tensor.
        boxes: offsets and sizes, none of them empty.

    Raises:
        Misfit: one reaches out of the tensor, two overlap, or elements are in none.

    Example:
        >>> check_cover((4, 2), [((0, 0), (3, 2)), ((3, 0), (1, 2))])
        >>> check_cover((4, 2), [((0, 0), (3, 2))])
        Traceback (most recent call last):
        ...
        frostline.checkpoint.readers.file_tensor.Misfit: shards that leave 2 of 8 elements out
    """
    for offsets, sizes in boxes:
        fits = len(offsets) == len(sizes) == len(shape)
        if not fits or any(o + s > whole for o, s, whole in zip(offsets, sizes, shape, strict=True)):
            raise Misfit(f"a shard of shape {sizes} at {offsets}, in a tensor of shape {shape}")
    covered, numel = sum(math.prod(sizes) for _, sizes in boxes), math.prod(shape)
    if not _is_grid(shape, list(boxes), 0):
        _compare_pairs(boxes)
        if covered < numel:
            raise Misfit(f"shards that leave {numel - covered:,} of {numel:,} elements out")


def _is_grid(shape: tuple[int, ...], boxes: list[Box], dimension: int) -> bool:
    """Whether boxes cut the dimensions one after another, and cover all: what meshes of processes make."""
    if dimension == len(shape):
        return len(boxes) == 1
    runs: dict[tuple[int, int], list[Box]] = {}
    for box in boxes:
        runs.setdefault((box[0][dimension], box[1][dimension]), []).append(box)
    end = 0
    for begin, size in sorted(runs):
        if begin != end:
            return False
        end += size
    return end == shape[dimension] and all(_is_grid(shape, run, dimension + 1) for run in runs.values())


def _compare_pairs(boxes: Sequence[Box]) -> None:
    if len(boxes) > _MOST_IN_PAIRS:
        raise Misfit(f"{len(boxes):,} shards that form no grid")
    ordered = sorted(boxes)
    for number, (offsets, sizes) in enumerate(ordered):
        for others, lengths in ordered[number + 1 :]:
            if offsets and others[0] >= offsets[0] + sizes[0]:
                break  # and so do all that come later
            if all(o < p + m and p < o + s for o, s, p, m in zip(offsets, sizes, others, lengths, strict=True)):
                raise Misfit(f"shards that overlap: of shape {sizes} at {offsets}, of shape {lengths} at {others}")


def _box(values: Tensor, shard: Shard) -> Tensor:
    for dimension, (offset, size) in enumerate(zip(shard.offsets, shard.sizes, strict=True)):
        values = values.narrow(dimension, offset, size)
    return values


def _is_plain(found: StoredTensor) -> TypeGuard[FileTensor]:
    return isinstance(found, FileTensor) and found.stride is None
