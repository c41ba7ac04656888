"""How batches of a loader go into a model, and which part of a batch holds the labels."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from frostline.errors import NormsError, NoStatistics

Forward: TypeAlias = "Callable[[nn.Module, Any], Any]"
# What data sets of the field call the targets in a batch that is a mapping.
_LABELS = ("labels", "label", "targets", "target", "y")


@dataclass(frozen=True)
class Feed:
    """A loader, and the way from its batches into a model.

    A batch that is a tensor goes in as it is; of a tuple or list the first element goes in, the last is the labels; a
    mapping goes in as keyword arguments, without its labels. Anything else needs ``forward``.

    Attributes:
        loader: yields batches; has to yield them again for each pass over the data.
        forward: ``forward(model, batch)``, in place of the rules above.
        device: where tensors are moved to first; ``None`` is the device of the model's first tensor.

    Example:
        >>> feed = Feed([(torch.ones(2, 3), torch.zeros(2))])
        >>> [(feed.run(nn.Identity(), batch).shape, feed.labels(batch)) for batch in feed]
        [(torch.Size([2, 3]), tensor([0., 0.]))]
    """

    loader: Iterable[Any]
    forward: Forward | None = None
    device: torch.device | str | None = None

    def __iter__(self) -> Generator[Any]:
        """The batches of one pass.

        At its end the loader's own random generators are as before, so that the next pass sees the same data.

        Raises:
            NoStatistics: there is none.
        """
        empty = True
        with _generators_kept(self.loader):
            for batch in self.loader:
                empty = False
                yield batch
        if empty:
            raise NoStatistics(
                f"the loader ({type(self.loader).__name__}) yields no batch, so there is nothing to estimate from\n"
                "  fix: check the data set's length and drop_last, which drops everything that is shorter than a batch"
            )

    def several_passes(self, what: str) -> Feed:
        """This feed, if its loader can be gone over more than once.

        Raises:
            NormsError: it is an iterator, which is empty after the first pass.
        """
        if isinstance(self.loader, Iterator):
            raise NormsError(
                f"{what} goes over the data several times, and the loader ({type(self.loader).__name__}) is an "
                "iterator, which is empty after the first pass\n  fix: pass a DataLoader, or list(loader)"
            )
        return self

    def run(self, model: nn.Module, batch: Any) -> Any:
        """What the model makes of one batch."""
        batch = _moved(batch, self.device if self.device is not None else _device_of(model))
        if self.forward is not None:
            return self.forward(model, batch)
        if isinstance(batch, Tensor):
            return model(batch)
        if isinstance(batch, Mapping):
            named = cast("Mapping[str, Any]", batch)
            return model(**{name: value for name, value in named.items() if name not in _LABELS})
        if isinstance(batch, (tuple, list)) and batch:
            return model(batch[0])
        raise NormsError(
            f"a batch of type {type(batch).__name__}: it is not known how it goes into the model\n"
            "  expected: a tensor, a tuple or list that begins with one, or a mapping\n"
            "  fix: forward=lambda model, batch: model(...)"
        )

    def labels(self, batch: Any) -> Any:
        """The labels in a batch, ``None`` if there are none."""
        if isinstance(batch, Mapping):
            named = cast("Mapping[str, Any]", batch)
            return next((named[name] for name in _LABELS if name in named), None)
        if isinstance(batch, (tuple, list)) and len(cast("list[Any]", batch)) > 1:
            return cast("list[Any]", batch)[-1]
        return None


def _moved(value: Any, device: torch.device | str | None) -> Any:
    """The batch on this device; the very same object if nothing of it had to be moved."""
    if device is None:
        return value
    if callable(getattr(value, "to", None)):  # a tensor, and what libraries make of several
        return value.to(device)
    if isinstance(value, Mapping):
        named = cast("Mapping[Any, Any]", value)
        moved = {key: _moved(each, device) for key, each in named.items()}
        return value if all(moved[key] is each for key, each in named.items()) else moved
    if isinstance(value, (tuple, list)):
        given = cast("list[Any]", value)
        several = [_moved(each, device) for each in given]
        if all(new is old for new, old in zip(several, given, strict=True)):
            return given
        made = cast("Any", type(given))
        return made(*several) if hasattr(given, "_fields") else made(several)  # a named tuple takes them one by one
    return value


@contextmanager
def _generators_kept(loader: Any) -> Generator[None]:
    """Restore the generators that a ``DataLoader`` and its samplers were given."""
    samplers = [getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    samplers.append(getattr(samplers[1], "sampler", None))
    found = [getattr(holder, "generator", None) for holder in (loader, *samplers)]
    states = [(each, each.get_state()) for each in found if isinstance(each, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)


def _device_of(model: nn.Module) -> torch.device | None:
    tensor = next(model.parameters(), None)
    tensor = next(model.buffers(), None) if tensor is None else tensor
    return None if tensor is None else tensor.device
