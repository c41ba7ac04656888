"""Where heads get their features from: a cache on disk, tensors in memory, or a trunk that runs once.

Knows features and samples; knows nothing of heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from frostline.errors import DataError, ModelError
from frostline.fast.features import Features, filled_up
from frostline.norms.untouched import untouched

# Narrower features are widened: heads train in at least this.
_WIDE = torch.float32


@runtime_checkable
class FeatureSource(Protocol):
    """Features by the number of the sample; a :class:`~frostline.fast.FeatureCache` is one."""

    @property
    def views(self) -> int:
        """How many views there are of each sample."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Any, view: int = 0) -> tuple[Features, Any]:
        """The features of some samples in one view, and what the data set says of them.

        Args:
            indices: numbers of the samples, int64, shape (N,).
            view: which view, below ``views``.
        """
        ...


class FeaturesInMemory:
    """Features that lie in memory, as a source.

    Args:
        features: one tensor or several; the first dimension of each is the sample. They are only read.
        device: where they are kept.

    Raises:
        DataError: there is no sample, or the tensors have different numbers of them.

    Example:
        >>> source = FeaturesInMemory(torch.arange(6.0).view(3, 2))
        >>> source.batch(torch.tensor([2, 0]))[0][0].tolist()
        [[4.0, 5.0], [0.0, 1.0]]
    """

    views = 1

    def __init__(self, features: Tensor | Sequence[Tensor], device: torch.device | None = None) -> None:
        tensors = (features,) if isinstance(features, Tensor) else tuple(features)
        counts = [len(each) if each.ndim else 0 for each in tensors]
        if not counts or min(counts) < 1 or len(set(counts)) > 1:
            shapes = ", ".join(str(tuple(each.shape)) for each in tensors) or "none"
            raise DataError(
                f"features of shape {shapes} cannot be used\n  fix: one tensor or several, with one row for each sample"
            )
        self._tensors = tuple(each.detach().to(device) for each in tensors)

    def __len__(self) -> int:
        return len(self._tensors[0])

    def batch(self, indices: Tensor, view: int = 0) -> tuple[Features, None]:
        """The features of some samples; there is one view.

        Args:
            indices: numbers of the samples.
            view: without effect.
        """
        del view
        return tuple(each.index_select(0, indices.to(each.device)) for each in self._tensors), None


def gather(source: FeatureSource, indices: Tensor, view: int, device: torch.device) -> Features:
    """Some samples' features on a device, in float32 or wider, without a graph.

    Example:
        >>> source = FeaturesInMemory(torch.ones(3, 2, dtype=torch.float16))
        >>> gather(source, torch.tensor([1]), 0, torch.device("cpu"))
        (tensor([[1., 1.]]),)
    """
    features = source.batch(indices, view)[0]
    return tuple(
        each.detach().to(device=device, dtype=_WIDE if each.is_floating_point() and each.itemsize < 4 else each.dtype)
        for each in features
    )


def features_of(trunk: nn.Module, inputs: Tensor | Iterable[Tensor], *, rows: int = 32) -> Features:
    """Run a trunk once over all inputs, in eval mode and without a graph, and keep what it gives on the host.

    The trunk runs on chunks of exactly ``rows`` samples, the last of which is filled up: what a sample gives then
    depends neither on how many samples there are nor on how they were cut. Modes, buffers, plain attributes and random
    generators are afterwards what they were.

    Args:
        trunk: maps a batch to features: a tensor, or a tuple of tensors.
        inputs: all of them (N, ...), or chunks of at most ``rows`` samples; moved to the trunk's device.
        rows: samples a run.

    Returns:
        One tensor or several, each (N, ...).

    Raises:
        DataError: there are no inputs, or a chunk is longer than ``rows``.
        ModelError: what the trunk gives are no features of so many samples.

    Example:
        >>> features_of(nn.Dropout(), torch.ones(5, 2), rows=4)[0].shape
        torch.Size([5, 2])
    """
    if rows < 1:
        raise DataError(f"features_of: rows={rows} is too small\n  fix: 1 or more")
    device = next((each.device for each in [*trunk.parameters(), *trunk.buffers()]), torch.device("cpu"))
    parts: list[Features] = []
    with untouched(trunk) as root:
        for chunk in inputs.split(rows) if isinstance(inputs, Tensor) else inputs:
            count = len(chunk)
            if count > rows:
                raise DataError(f"features_of: a chunk has {count} samples, and rows={rows}\n  fix: rows={count}")
            if not count:
                continue
            given: Any = root(filled_up(chunk, rows).to(device))
            parts.append(tuple(each[:count].cpu() for each in _checked(given, rows)))
    if not parts:
        raise DataError("features_of: there are no inputs\n  fix: at least one sample")
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _checked(given: Any, rows: int) -> Features:
    features: tuple[Any, ...] = (given,) if isinstance(given, Tensor) else given if isinstance(given, tuple) else ()
    if not features or not all(isinstance(each, Tensor) and each.ndim and len(each) == rows for each in features):
        found = ", ".join(
            f"a tensor of shape {tuple(each.shape)}" if isinstance(each, Tensor) else f"a {type(each).__name__}"
            for each in features or (given,)
        )
        raise ModelError(
            f"the trunk gives no features\n  expected: a tensor, or a tuple of tensors, with {rows} rows\n"
            f"  found: {found}\n  fix: a trunk without its classifier, that gives tensors"
        )
    return features
