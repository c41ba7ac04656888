"""Batches of samples by view, read here or by workers, each sample checked to be of the form of the first.

Knows datasets and loaders; knows nothing of features or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frostline.errors import CacheError, FrostlineError
from frostline.fast.sample_parts import Form, digest_of, form_of, leaves, together
from frostline.fast.sample_table import Ints
from frostline.fast.views import ViewedSamples

Wanted: TypeAlias = "tuple[int, Ints]"


@dataclass(frozen=True)
class ViewBatch:
    """Samples of one view.

    Attributes:
        view: the view.
        indices: the samples.
        inputs: what the model gets.
        targets: the leaves of their targets, stacked.
        digests: of each sample, shape (samples, 16), ``uint8``.
    """

    view: int
    indices: Ints
    inputs: Any
    targets: list[Tensor]
    digests: Tensor


class ViewBatches:
    """What reads batches of a dataset.

    Args:
        samples: the dataset.
        input: the form that every input has to have.
        target: the form that every target has to have.
        workers: how many processes read; none but this one with 0. The result is the same.
    """

    def __init__(self, samples: ViewedSamples, input: Form, target: Form, workers: int = 0) -> None:  # noqa: A002
        self._reader = _Reader(samples, input, target)
        self.workers = workers

    def read(self, wanted: Iterable[Wanted], in_worker: Callable[[], None]) -> Iterator[ViewBatch]:
        """Read batches in the order wanted. No random generator of the process is touched.

        Args:
            wanted: view and indices of each batch.
            in_worker: called by each worker before it begins.

        Raises:
            CacheError: a sample is of another form than the first one.
        """
        loader: DataLoader[Any] = DataLoader(
            self._reader,
            batch_sampler=_Keys(wanted),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            # Its own, because a loader draws a seed for its workers.
            generator=torch.Generator(),
            worker_init_fn=_Begin(in_worker) if self.workers else None,
        )
        for result in loader:
            # A loader would turn an error of a worker into another one, with its traceback for a message.
            if isinstance(result, FrostlineError):
                raise result
            yield result


class _Keys:
    """Batches of (view, index), as a loader asks a sampler for them."""

    def __init__(self, wanted: Iterable[Wanted]) -> None:
        self._wanted = wanted

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for view, indices in self._wanted:
            yield [(view, index) for index in indices.tolist()]


class _Begin:
    """Can be sent to a worker where what it calls can be."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def __call__(self, _number: int) -> None:
        self._call()


class _Reader(Dataset[Any]):
    """Reads a whole batch at once, so that one can be checked against the others."""

    def __init__(self, samples: ViewedSamples, input_form: Form, target_form: Form) -> None:
        self._samples, self._input, self._target = samples, input_form, target_form

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> Any:
        try:
            with self._samples.reading():
                return self._batch(keys)
        except FrostlineError as error:
            return error

    def _batch(self, keys: Sequence[tuple[int, int]]) -> ViewBatch:
        inputs: list[list[Tensor]] = []
        targets: list[list[Tensor]] = []
        digests: list[bytes] = []
        for view, index in keys:
            read = self._samples.read(index, view)
            for part, value, form in (("input", read.input, self._input), ("target", read.target, self._target)):
                found = form_of(value)
                if found != form:
                    raise CacheError(
                        f"the {part} of sample {index} is of another form than that of sample 0\n  expected: {form}\n"
                        f"  found: {found}\n  fix: a transform that gives every sample the same shape and type"
                    )
            inputs.append(leaves(read.input, self._input))
            targets.append(leaves(read.target, self._target))
            digests.append(bytes.fromhex(digest_of([*inputs[-1], *targets[-1]])))
        stacked = [torch.stack(column) for column in zip(*inputs, strict=True)]
        return ViewBatch(
            view=keys[0][0],
            indices=np.array([index for _, index in keys], np.int64),
            inputs=together(stacked, self._input, batch=True),
            targets=[torch.stack(column) for column in zip(*targets, strict=True)],
            digests=torch.from_numpy(np.frombuffer(b"".join(digests), np.uint8).reshape(len(keys), 16).copy()),
        )


def _as_it_is(value: Any) -> Any:
    return value
