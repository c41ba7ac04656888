"""Samples of a dataset under one of several views of its augmentation, the same whenever and wherever they are read.

Knows datasets and random generators; knows nothing of features or files.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from frostline.errors import CacheError
from frostline.fast.sample_parts import digest_of, form_of, leaves
from frostline.runs.seeds import hashed_seed
from frostline.state.digest import digest_value

Randomness: TypeAlias = Literal["none", "epochs", "unseeded"]
# How many samples are asked whether they draw random numbers.
_PROBED = 4


class Samples(Protocol):
    """A dataset with a length and an index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Read:
    """One sample, as it was read.

    Attributes:
        input: what the model gets.
        target: what stands beside it, or ``None``.
    """

    input: Any
    target: Any

    def digest(self) -> str:
        """The digest of the input and of the target."""
        return digest_of([leaf for value in (self.input, self.target) for leaf in leaves(value, form_of(value))])


class ViewedSamples:
    """A dataset that is read by view and index.

    *Views.* Of a dataset that knows epochs (``set_epoch``), view ``v`` is its epoch ``v + 1``: see :func:`epoch_of`.
    One that draws from the process's generators (torch's, numpy's, python's) is given them seeded by (seed, view,
    index), and they are as before after reading, so that views are the same in any order, with any number of
    workers, and in another process.

    *Samples.* A sample is ``(input, target)``, a tuple or list of two, or the input alone. The input is a tensor, or a
    tuple or dictionary of tensors.

    Args:
        dataset: map-style; only read, but for its epoch.
        seed: of the generators.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        try:
            count = len(dataset)
        except TypeError as error:
            raise CacheError(
                f"the dataset, a {type(dataset).__name__}, has no length, so its samples cannot be told apart\n"
                "  fix: a map-style dataset, with __len__ and __getitem__"
            ) from error
        if count == 0:
            raise CacheError(
                "the dataset is empty: there is nothing to compute features of\n  fix: a dataset with samples"
            )
        self.dataset = cast("Samples", dataset)
        self.seed = seed
        self.epochs = _with_epochs(dataset)
        # Until the probe has shown that it is not needed.
        self.seeded = True

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, index: int, view: int) -> Read:
        """Read one sample under a view, within a block of :meth:`reading`."""
        if self.epochs is not None:
            self.epochs.set_epoch(epoch_of(view))
        if self.seeded:
            seed_generators(self.seed, view, index)
        return split(self.dataset[index])

    @contextmanager
    def reading(self) -> Generator[None, None, None]:
        """A block in which samples are read; after it the dataset's epoch and all generators are as before."""
        before = getattr(self.epochs, "epoch", None)
        try:
            with generators_kept():
                yield
        finally:
            if self.epochs is not None and isinstance(before, int):
                self.epochs.set_epoch(before)

    def probe(self) -> Randomness:
        """Find out what the samples depend on beside their index, and seed them from now on if they have to be.

        A few samples are read; a sample that draws from a generator of the process is noticed by the state of the
        generator, even where what it drew changed nothing.

        Returns:
            ``"none"``, ``"epochs"`` or ``"unseeded"``.

        Raises:
            CacheError: a sample is another one at each reading, though all generators were seeded alike.
        """
        self.seeded = True
        count = len(self)
        with self.reading():
            # Two readings of the first sample, in one epoch and under the same seeds.
            first, again = self.read(0, 0).digest(), self.read(0, 0).digest()
            if first != again:
                raise CacheError(
                    "sample 0 is another one at each reading, though torch's, numpy's and python's generators were "
                    "seeded alike\n  found: it draws from a generator of its own, a clock or a file that changes\n"
                    "  fix: draw from torch's default generator, or seed by (seed, epoch, index) and offer set_epoch"
                )
            probed = sorted({number * (count - 1) // max(1, _PROBED - 1) for number in range(_PROBED)})
            self.seeded = any(self._draws(index) for index in probed)
            if self.seeded:
                return "unseeded"
            return "none" if self.epochs is None else "epochs"

    def _draws(self, index: int) -> bool:
        seed_generators(self.seed, 0, index)
        before = _states()
        if self.epochs is not None:
            self.epochs.set_epoch(epoch_of(0))
        self.dataset[index]
        after = _states()
        return digest_value(before) != digest_value(after)

    @property
    def keyed(self) -> bool:
        """Whether the dataset has names for its samples."""
        return hasattr(self.dataset, "sample_key")

    def key(self, index: int) -> str:
        """What the dataset calls a sample, ``sample_key(index)``: a text that changes when the sample does."""
        name: Any = getattr(self.dataset, "sample_key")  # noqa: B009 - a dataset need not have it
        return str(name(index))


def views_refused(randomness: str, views: int) -> str:
    """Why so many views of such samples make no sense; empty where they do.

    Example:
        >>> views_refused("none", 8).splitlines()[-1], views_refused("unseeded", 8)
        ('  fix: views=1', '')
    """
    if randomness == "unseeded" and views == 1:
        return (
            "one view of a random transform would freeze the augmentation: a sample would look the same at all times\n"
            "  found: samples draw from torch's, numpy's or python's generator\n"
            "  fix: views=8, or a deterministic transform"
        )
    if randomness == "none" and views > 1:
        return (
            f"all {views} views would be the same\n"
            "  found: samples draw no random numbers, and there is no set_epoch\n  fix: views=1"
        )
    return ""


def epoch_of(view: int) -> int:
    """The epoch that a view shows: a main job counts its epochs from 1, views are counted from 0.

    Example:
        >>> epoch_of(0)
        1
    """
    return view + 1


def split(sample: Any) -> Read:
    """Tell input and target of a sample apart.

    Example:
        >>> split((torch.zeros(1), 3)).target, split(torch.zeros(1)).target
        (3, None)
    """
    if isinstance(sample, (tuple, list)) and len(cast("Sequence[Any]", sample)) == 2:
        return Read(*cast("Sequence[Any]", sample))
    return Read(sample, None)


def seed_generators(seed: int, view: int, index: int) -> None:
    """Seed torch's CPU generator, numpy's and python's for one sample under one view.

    Example:
        >>> with generators_kept():
        ...     seed_generators(0, 0, 5)
        ...     first = torch.rand(1)
        ...     seed_generators(0, 0, 5)
        ...     print(torch.equal(first, torch.rand(1)))
        True
    """
    value = hashed_seed(seed, view, index)
    # torch.manual_seed would seed the generators of devices too, which are not brought back.
    torch.default_generator.manual_seed(value >> 1)
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)


@contextmanager
def generators_kept() -> Generator[None, None, None]:
    """A block after which torch's CPU generator, numpy's and python's are as before.

    For many samples at once, because numpy takes a tenth of a millisecond to tell its state.
    """
    before_torch, before_numpy, before_python = _states()
    try:
        yield
    finally:
        torch.default_generator.set_state(before_torch)
        np.random.set_state(before_numpy)
        random.setstate(before_python)


def preprocessing_key(dataset: Any) -> str | None:
    """How a dataset says that it prepares its samples: its ``preprocessing_key``, a text or a method giving one."""
    value = getattr(dataset, "preprocessing_key", None)
    value = value() if callable(value) else value
    return None if value is None else str(value)


def _states() -> tuple[Tensor, Any, tuple[Any, ...]]:
    return torch.default_generator.get_state(), np.random.get_state(), random.getstate()


def _with_epochs(dataset: Any) -> Any:
    """The dataset, or the one inside it (as in torch's ``Subset``), that has ``set_epoch``."""
    seen: set[int] = set()
    while dataset is not None and id(dataset) not in seen:
        if hasattr(dataset, "set_epoch"):
            return dataset
        seen.add(id(dataset))
        dataset = getattr(dataset, "dataset", None)
    return None
