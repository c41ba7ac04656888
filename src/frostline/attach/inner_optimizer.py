"""The optimizer inside wrappers."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


def inner_optimizer(optimizer: Any) -> Any:
    """What is inside wrappers such as accelerate's, which is an ``Optimizer`` by type but keeps no hooks.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> inner_optimizer(optimizer) is optimizer
        True
    """
    while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    return optimizer
