"""A block that may run a model over data, after which everything is as it was before."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.errors import CannotDigest, NoStatistics
from frostline.state import names
from frostline.state.digest import digest


@contextmanager
def random_state_kept() -> Generator[None]:
    """Restore the generators of torch (every device in use), NumPy and Python at the end.

    Loaders that augment draw from any of them, so passes over the same loader inside blocks of this kind that begin
    alike see the same data.

    Example:
        >>> before = torch.random.get_rng_state()
        >>> with random_state_kept():
        ...     _ = torch.rand(3)
        >>> torch.equal(before, torch.random.get_rng_state())
        True
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def untouched(model: nn.Module) -> Generator[nn.Module]:
    """Give the model inside all wrappers, in eval mode and without gradients; put everything back at the end.

    Kept, on exceptions too: the mode of every module, every buffer (the same tensor object on the same memory, to the
    bit; one that a forward pass adds is removed), every attribute that is a plain number, flag or string, and the state
    of the random generators. Modes are set one by one, past ``train()``, which some models use for more.

    Raises:
        NoStatistics: a part of the model is lazy; running it would materialize it.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> with untouched(model) as inside:
        ...     _ = inside(torch.randn(4, 2)), inside[0].running_mean.fill_(7)
        >>> model.training, model[0].running_mean.tolist()
        (True, [0.0, 0.0])
    """
    root = names.unwrap(model)
    for path, module in root.named_modules():
        if any(tensor is not None and is_lazy(tensor) for tensor in _own_tensors(module)):
            raise NoStatistics(
                f"{path or '(root)'!r} ({type(module).__name__}) is lazy and not materialized, so the model cannot be "
                "run without changing it\n  fix: run the model once, so that it learns its widths"
            )
    before = [_Before.of(module) for module in root.modules()]
    try:
        for module in root.modules():
            module.training = False
        with random_state_kept(), torch.no_grad():
            yield root
    finally:
        for each in before:
            each.put_back()


@dataclass(frozen=True)
class _Before:
    """What one module holds of its own and a forward pass may change.

    Plain attributes belong to it because they go with buffers: what caches a table in a buffer says so in a flag.
    """

    module: nn.Module
    plain: dict[str, Any]
    buffers: dict[str, Tensor | None]
    persistent: set[str]
    values: list[tuple[Tensor, Tensor, Tensor]]

    @staticmethod
    def of(module: nn.Module) -> _Before:
        # The alias shares the buffer's memory: it still knows it after the buffer's `.data` has been replaced.
        values = [(b, b.detach(), b.detach().clone()) for b in module._buffers.values() if b is not None]
        return _Before(module, _plain(module), dict(module._buffers), set(module._non_persistent_buffers_set), values)

    def put_back(self) -> None:
        attributes = self.module.__dict__
        for name in _plain(self.module).keys() - self.plain.keys():
            del attributes[name]
        attributes.update(self.plain)
        buffers = self.module._buffers
        if [(n, id(b)) for n, b in buffers.items()] != [(n, id(b)) for n, b in self.buffers.items()]:
            buffers.clear()
            buffers.update(self.buffers)
            self.module._non_persistent_buffers_set.clear()
            self.module._non_persistent_buffers_set.update(self.persistent)
        for buffer, alias, value in self.values:
            if buffer.is_meta:
                continue
            if _is_strided(alias) and _place(buffer) != _place(alias):
                buffer.data = alias
            # Written only if it differs, because a write makes a backward pass fail that still needs the buffer.
            if not _same_bits(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if _is_strided(one) and one.is_contiguous():
        return torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))
    try:
        return digest(one) == digest(other)
    except CannotDigest:  # sparse
        return False


def _is_strided(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _own_tensors(module: nn.Module) -> list[Tensor | None]:
    return [*module._parameters.values(), *module._buffers.values()]


def _plain(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in module.__dict__.items() if v is None or isinstance(v, (bool, int, float, str))}
