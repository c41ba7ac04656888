"""Files of many samples: written whole or not at all, read by memory map, checked once.

Knows columns of numbers and files; knows nothing of models, datasets or views.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frostline.checkpoint.stored import as_bytes, dtype_name, in_memory
from frostline.checkpoint.tensor_writer import combined_digest, write_tensors
from frostline.errors import CorruptCache
from frostline.fast.narrowing import Losses
from frostline.fast.sample_table import Ints, expanded
from frostline.state.digest import digest_all

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Column:
    """One tensor of every sample.

    Attributes:
        name: of the tensor in the file.
        shape: of one sample.
        dtype: its type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ShardRecord:
    """What is known of a file of samples without opening it.

    Attributes:
        file: its name.
        view: the view that its samples were read under.
        slots: ranges of the slots that its rows belong to, in order.
        digest: the combined digest of its tensors.
        nbytes: of the file.
        losses: place to what narrowing has changed.
    """

    file: str
    view: int
    slots: tuple[tuple[int, int], ...]
    digest: str
    nbytes: int
    losses: Mapping[str, Losses] = field(default_factory=dict[str, Losses])

    @property
    def rows(self) -> Ints:
        """The slot of each row."""
        return expanded(self.slots)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON-ready values."""
        return {
            "file": self.file,
            "view": self.view,
            "slots": [list(pair) for pair in self.slots],
            "digest": self.digest,
            "nbytes": self.nbytes,
            "losses": {name: [each.largest, each.squares_lost, each.squares] for name, each in self.losses.items()},
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ShardRecord:
        """The record that :meth:`to_json` gave."""
        return ShardRecord(
            file=str(value["file"]),
            view=int(value["view"]),
            slots=tuple((int(start), int(stop)) for start, stop in value["slots"]),
            digest=str(value["digest"]),
            nbytes=int(value["nbytes"]),
            losses={str(name): Losses(*map(float, each)) for name, each in value["losses"].items()},
        )


class Shard:
    """An open file of samples. Its tensors are mapped: what is not asked for is not in memory.

    Attributes:
        tensors: column to tensor, the first dimension being the row. They are not to be written to.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors
        # Rows as bytes: numpy copies them without looking at what they mean, bfloat16 included.
        self._bytes = {name: _rows_of_bytes(tensor) for name, tensor in tensors.items()}

    def rows(self, column: str) -> Bytes:
        """The rows of a column as bytes, shape (rows, bytes)."""
        return self._bytes[column]


def write_shard(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, int]:
    """Write a file of samples, whole or not at all.

    Returns:
        The combined digest of its tensors, and the bytes of the file.

    Raises:
        StorageFull: there is no space left.
        CannotWrite: it cannot be written for another reason.
    """
    digest = write_tensors(path, {name: in_memory(tensor) for name, tensor in tensors.items()}, metadata)
    return digest, path.stat().st_size


def open_shard(path: Path, digest: str, nbytes: int, columns: Sequence[Column]) -> Shard:
    """Map a file of samples, and check every byte of it once.

    Args:
        path: the file.
        digest: the combined digest of its tensors.
        nbytes: how long it is.
        columns: what it has to hold.

    Raises:
        CorruptCache: it is missing, cut short, flipped, or holds something else.
    """
    return Shard(read_tensors(path, digest, nbytes, {column.name: column for column in columns}))


def read_tensors(
    path: Path, digest: str, nbytes: int | None = None, columns: Mapping[str, Column] | None = None
) -> dict[str, Tensor]:
    """Map the tensors of a file and compare their digest.

    Raises:
        CorruptCache: they are not those that were written.
    """
    try:
        size = path.stat().st_size
        if nbytes is not None and size != nbytes:
            raise _corrupt(path, f"{size:,} bytes instead of {nbytes:,}")
        with safe_open(path, framework="pt") as file:
            # A map of the file, not a copy of it: the library lets torch map CPU tensors.
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise _corrupt(path, "it is missing") from error
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _corrupt(path, f"it cannot be read: {error}") from error
    if combined_digest(digest_all(tensors)) != digest:
        raise _corrupt(path, "its bytes are not those that were written")
    for name, column in (columns or {}).items():
        tensor = tensors.get(name)
        if tensor is None or tuple(tensor.shape[1:]) != column.shape or tensor.dtype != column.dtype:
            held = "nothing" if tensor is None else f"{dtype_name(tensor.dtype)} {tuple(tensor.shape)}"
            raise _corrupt(path, f"{name!r} is {held} instead of {dtype_name(column.dtype)} (…, {column.shape})")
    return tensors


def new_rows(column: Column, count: int) -> tuple[Tensor, Bytes]:
    """An uninitialized tensor for rows of a column, and its rows as bytes."""
    tensor = torch.empty((count, *column.shape), dtype=column.dtype)
    return tensor, _rows_of_bytes(tensor)


def _rows_of_bytes(tensor: Tensor) -> Bytes:
    width = math.prod(tensor.shape[1:]) * tensor.dtype.itemsize
    return as_bytes(tensor).numpy().reshape(len(tensor), width)


def _corrupt(path: Path, found: str) -> CorruptCache:
    return CorruptCache(f"{path} is damaged\n  found: {found}\n  fix: fill() computes what is damaged again")
