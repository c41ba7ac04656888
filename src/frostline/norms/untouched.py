"""A block that may run a model over data, after which everything is as it was before."""

from __future__ import annotations

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from frostline.state import names


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

    Kept, on exceptions too: the mode of every module, every buffer (the same tensor object with the same values), and
    the state of the random generators. Modes are set one by one, past ``train()``, which some models use for more.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> with untouched(model) as inside:
        ...     _ = inside(torch.randn(4, 2)), inside[0].running_mean.fill_(7)
        >>> model.training, model[0].running_mean.tolist()
        (True, [0.0, 0.0])
    """
    root = names.unwrap(model)
    modes = [(module, module.training) for module in root.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in root.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not torch.nn.parameter.is_lazy(buffer)
    ]
    try:
        for module, _ in modes:
            module.training = False
        with random_state_kept(), torch.no_grad():
            yield root
    finally:
        for module, mode in modes:
            module.training = mode
        for module, name, buffer, value in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)
