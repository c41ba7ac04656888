"""A computation whose graph keeps no values: they are made again when the gradient comes to them.

``torch.utils.checkpoint`` computes a piece three times if a gradient is taken inside (that gradient asks for values
that are gone already), and its first use imports PyTorch's compiler: a second, and 80 MB. This computes it twice.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Generator
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from frostline.errors import MetaError

R = TypeVar("R")


class _Kept:
    """A value that a graph needs, or the place for it."""

    def __init__(self, value: Tensor) -> None:
        self.value: Tensor | None = value


def recomputed(work: Callable[[], R], device: torch.device) -> R:
    """What ``work`` returns, with a graph whose values are forgotten as soon as it is done.

    The graph itself is the same, and so is every gradient, to the bit: ``work`` runs a second time in the backward
    pass, with the same random numbers and the same autocast. What it returns then is thrown away.

    Args:
        work: makes tensors; it may take gradients inside, and has to do the same when it is called again.
        device: where it works, for its random numbers.

    Raises:
        MetaError: in the backward pass, if ``work`` did something else than at first.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> y = recomputed(lambda: x.square(), torch.device("cpu"))
        >>> torch.autograd.grad(y, x)[0].item()
        6.0
    """
    kept: list[weakref.ref[_Kept]] = []
    autocast = (torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type))
    before = _random_state(device)

    def pack(value: Tensor) -> _Kept:
        # Autograd gives it its graph back. With the graph it had, a node would keep itself alive by what it made.
        place = _Kept(value.detach())
        kept.append(weakref.ref(place))
        return place

    def unpack(place: _Kept) -> Tensor:
        if place.value is None:
            again()
        value = place.value
        assert value is not None
        if done:
            # Each is asked for once; for a second backward pass all is made a third time.
            place.value = None
        return value

    def again() -> None:
        count = 0

        def fill(value: Tensor) -> Tensor:
            nonlocal count
            place = kept[count]() if count < len(kept) else None
            value = value.detach()
            if place is not None:
                place.value = value
            count += 1
            return value

        enabled, dtype = autocast
        with (
            _drawing_from(random, device),
            torch.enable_grad(),
            torch.autocast(device.type, dtype=dtype, enabled=enabled),
            saved_tensors_hooks(fill, _same),
        ):
            work()
        if count != len(kept):
            raise MetaError(
                f"a step that was computed again kept {count} values for the gradient, and {len(kept)} at first\n"
                "  fix: checkpoint_steps=False for a model whose passes are not the same each time"
            )

    done = False
    with saved_tensors_hooks(pack, unpack):
        result = work()
    random = None if all(map(torch.equal, before, _random_state(device))) else before
    for reference in kept:
        place = reference()
        if place is not None:
            place.value = None
    done = True
    return result


def _same(value: Tensor) -> Tensor:
    return value


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    cpu = torch.default_generator.get_state()
    return (cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (cpu,)


@contextlib.contextmanager
def _drawing_from(state: tuple[Tensor, ...] | None, device: torch.device) -> Generator[None]:
    """Random numbers from a state, and afterwards those that would have come anyway."""
    if state is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.set_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
