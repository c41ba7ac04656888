"""Which tensors share memory, to the byte. Reads addresses and strides, never values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


def find_aliases(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For each path that has any, the other paths whose bytes overlap with it, in the order given.

    Example:
        >>> row = torch.zeros(4)
        >>> aliases = find_aliases({"all": row, "left": row[:2], "right": row[2:]})
        >>> aliases["all"], aliases["left"]
        (['left', 'right'], ['all'])
    """
    reaches: dict[object, list[tuple[_Reach, str]]] = {}
    for path, tensor in tensors.items():
        memory, reach = _locate(tensor)
        reaches.setdefault(memory, []).append((reach, path))
    found: dict[str, list[str]] = {}
    for members in reaches.values():
        active: list[tuple[_Reach, str]] = []
        for reach, path in sorted(members, key=lambda member: member[0].start):
            active = [(other, name) for other, name in active if other.end > reach.start]
            for other, name in active:
                if reach.overlaps(other):
                    found.setdefault(path, []).append(name)
                    found.setdefault(name, []).append(path)
            active.append((reach, path))
    order = {path: i for i, path in enumerate(tensors)}
    return {path: sorted(others, key=order.__getitem__) for path, others in found.items()}


@dataclass(frozen=True)
class _Reach:
    """Where a tensor's bytes lie.

    Attributes:
        start: the address of the first.
        end: the address behind the last.
        dimensions: for each dimension its length and its stride in bytes; the last walks through one element.
    """

    start: int
    end: int
    dimensions: tuple[tuple[int, int], ...]

    @property
    def is_gapless(self) -> bool:
        """Whether every byte from the first to the last is the tensor's; dimensions may overlap (`unfold`)."""
        covered = 1
        for length, stride in sorted(self.dimensions, key=lambda dimension: dimension[1]):
            if length > 1 and stride > covered:
                return False
            covered += (length - 1) * stride
        return True

    def overlaps(self, other: _Reach) -> bool:
        """Whether two tensors, each of which starts before the other ends, have a byte in common."""
        if self == other or (self.is_gapless and other.is_gapless):
            return True
        # Views with gaps can interleave (the columns of one matrix), so every byte is looked at.
        first = min(self.start, other.start)
        touched = torch.zeros(max(self.end, other.end) - first, dtype=torch.bool)
        self._within(touched, first).fill_(True)
        return bool(other._within(touched, first).any())

    def _within(self, memory: Tensor, first: int) -> Tensor:
        lengths, strides = zip(*self.dimensions, strict=True)
        return memory.as_strided(lengths, strides, self.start - first)


def _locate(tensor: Tensor) -> tuple[object, _Reach]:
    """The memory a tensor lies in, and where; a tensor without an address is a memory of its own."""
    try:
        # Addresses, not storages: a tensor made from a NumPy array or through dlpack has a storage of its own.
        address = tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError, ValueError):
        address = 0  # lazy, sparse, or a subclass without a storage of its own
    if not address or tensor.numel() == 0:
        return ("object", id(tensor)), _Reach(0, 1, ((1, 1),))
    size = tensor.element_size()
    start = int(address + tensor.storage_offset() * size)
    # An expanded dimension (stride 0) reaches the same bytes again and again.
    strided = [(n, stride * size) for n, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    dimensions = (*strided, (size, 1))
    return str(tensor.device), _Reach(start, start + 1 + sum((n - 1) * step for n, step in dimensions), dimensions)
