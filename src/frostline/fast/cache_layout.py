"""Which tensors of a sample are kept, under which names, and how features become them and come back.

Knows places, forms and columns; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from frostline.fast.cache_manifest import Manifest
from frostline.fast.features import Features, Place
from frostline.fast.narrowing import Storage
from frostline.fast.sample_parts import Form, leaf_forms
from frostline.fast.shards import Column

# Of the input and the target as they were read, to notice another dataset or transform.
INPUT_DIGEST = Column("input", (16,), torch.uint8)


class Layout:
    """Which columns a shard has, for features of some places and targets of some form.

    Attributes:
        storages: how each place is kept.
        target: how a target is built.
        columns: all of them.
    """

    def __init__(self, places: Sequence[Place], dtype: torch.dtype | None, target: Form) -> None:
        self.storages = tuple(Storage.of(place, dtype) for place in places)
        self.target = target
        self._features = [
            [Column(f"feature.{number}.{part}", *kept) for part, kept in enumerate(storage.parts)]
            for number, storage in enumerate(self.storages)
        ]
        self._targets = [Column(f"target.{number}", *kept) for number, kept in enumerate(leaf_forms(target))]
        self.columns = (*(column for each in self._features for column in each), *self._targets, INPUT_DIGEST)

    @staticmethod
    def of(manifest: Manifest) -> Layout:
        """The layout of a cache."""
        dtype = getattr(torch, manifest.key.dtype) if manifest.key.dtype else None
        return Layout(manifest.key.places, dtype, manifest.target)

    @property
    def nbytes(self) -> int:
        """Bytes of one sample on the disk."""
        return sum(column.nbytes for column in self.columns)

    @property
    def wanted(self) -> tuple[Column, ...]:
        """The columns that training reads."""
        return self.columns[:-1]

    def kept(self, features: Features, targets: Sequence[Tensor], digests: Tensor) -> dict[str, Tensor]:
        """The columns of a batch."""
        parts = [
            part for storage, tensor in zip(self.storages, features, strict=True) for part in storage.narrow(tensor)
        ]
        values = [*parts, *targets, digests]
        return {column.name: value for column, value in zip(self.columns, values, strict=True)}

    def widened(self, kept: Mapping[str, Tensor]) -> Features:
        """The features of a batch from its columns, each in the type of its place."""
        return tuple(
            storage.widen([kept[column.name] for column in columns])
            for storage, columns in zip(self.storages, self._features, strict=True)
        )

    def targets(self, kept: Mapping[str, Tensor]) -> list[Tensor]:
        """The leaves of the targets of a batch."""
        return [kept[column.name] for column in self._targets]
