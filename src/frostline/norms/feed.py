"""How batches of a loader go into a model, and which part of a batch holds the labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
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

    def __iter__(self) -> Iterator[Any]:
        """The batches of one pass.

        Raises:
            NoStatistics: there is none.
        """
        empty = True
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
        if iter(self.loader) is self.loader:
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
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(each, device) for key, each in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        return [_moved(each, device) for each in cast("list[Any]", value)]
    return value


def _device_of(model: nn.Module) -> torch.device | None:
    tensor = next(model.parameters(), None)
    tensor = next(model.buffers(), None) if tensor is None else tensor
    return None if tensor is None else tensor.device
