"""Batches of a loader put together into larger ones, and cut off after so many samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from frostline.errors import NormsError
from frostline.norms.feed import Feed


def first_tensor(batch: Any) -> Tensor | None:
    """The first tensor with a dimension of samples in a batch; ``None`` where there is none.

    Example:
        >>> first_tensor({"pixels": torch.zeros(4, 3), "labels": torch.zeros(4)}).shape
        torch.Size([4, 3])
    """
    if isinstance(batch, Tensor):
        return batch if batch.ndim else None
    if isinstance(batch, Mapping):
        batch = list(cast("Mapping[Any, Any]", batch).values())
    if not isinstance(batch, (tuple, list)):
        return None
    return next((found for each in cast("list[Any]", batch) if (found := first_tensor(each)) is not None), None)


def samples_of(batch: Any) -> int:
    """How many samples a batch holds: the length of the first tensor in it; 0 where there is none.

    Example:
        >>> samples_of((torch.zeros(4, 3), torch.zeros(4)))
        4
    """
    found = first_tensor(batch)
    return 0 if found is None else found.shape[0]


@dataclass(frozen=True)
class Regrouped:
    """The batches of a feed, put together until they have at least ``size`` samples, up to ``most`` samples in all.

    Batches are never cut. What is left at the end goes with the last group, so that none is smaller than ``size`` but
    where the whole data is.

    Attributes:
        feed: the batches.
        size: samples a group; ``None`` leaves the batches as they are.
        most: after how many samples no further batch is taken; ``None`` takes all.

    Example:
        >>> ones = Feed([torch.ones(2, 1)] * 5)
        >>> [len(batch) for batch in Regrouped(ones, size=4)], [len(batch) for batch in Regrouped(ones, most=3)]
        ([4, 6], [2, 2])
    """

    feed: Feed
    size: int | None = None
    most: int | None = None

    def __iter__(self) -> Iterator[Any]:
        ready: list[Any] = []
        waiting: list[Any] = []
        for batch in self._taken():
            if self.size is None:
                yield batch
                continue
            waiting.append(batch)
            if sum(map(samples_of, waiting)) >= self.size:
                if ready:
                    yield together(ready)
                ready, waiting = waiting, []
        if ready or waiting:
            yield together([*ready, *waiting])

    def _taken(self) -> Iterator[Any]:
        samples = 0
        for batch in self.feed:
            if (self.most or self.size) and first_tensor(batch) is None:
                raise NormsError(
                    f"a batch of type {type(batch).__name__}: it is not known how many samples it has\n"
                    "  fix: leave batch_size and max_samples out, and give the loader itself the batches wanted"
                )
            yield batch
            samples += samples_of(batch)
            if self.most is not None and samples >= self.most:
                return


def together(batches: Sequence[Any]) -> Any:
    """Several batches as one: tensors along their first dimension, in tuples, lists and mappings too.

    Raises:
        NormsError: they cannot be put together, because their shapes or types differ, or because a list of tensors
            within a batch may be one tensor a sample or one a view.

    Example:
        >>> together([(torch.ones(1), ["a"]), (torch.ones(2), ["b", "c"])])
        (tensor([1., 1., 1.]), ['a', 'b', 'c'])
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    if isinstance(first, (tuple, list)) and all(len(each) == len(cast("list[Any]", first)) for each in batches):
        parts = [_joined(each) for each in zip(*batches, strict=True)]
        made: Any = type(cast("list[Any]", first))
        return made(*parts) if hasattr(made, "_fields") else made(parts)
    return _joined(batches)


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if all(isinstance(each, Tensor) and each.ndim and each.shape[1:] == first.shape[1:] for each in values):
        return torch.cat(list(values))
    if all(isinstance(each, Mapping) and each.keys() == first.keys() for each in values):
        return {key: _joined([each[key] for each in values]) for key in first}
    if all(isinstance(each, (tuple, list)) and not any(isinstance(part, Tensor) for part in each) for each in values):
        return [part for each in values for part in each]
    shapes = [tuple(each.shape) if isinstance(each, Tensor) else type(each).__name__ for each in values[:4]]
    raise NormsError(
        f"batches of {shapes} cannot be put together into a larger one\n"
        "  fix: leave batch_size out and give the loader itself larger batches"
    )
