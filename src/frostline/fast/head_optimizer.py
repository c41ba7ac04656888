"""AdamW for small modules: torch's own, without what surrounds a step of ``torch.optim``.

A step of a head takes torch 25 µs, and ``Optimizer.step`` around it takes 100 µs more, for hooks, profiling and graphs
that heads have no use for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# What torch's optimizer begins with.
_BETAS = (0.9, 0.999)
_EPS = 1e-8
_FUSED_ON = frozenset({"cpu", "cuda"})


class HeadOptimizer:
    """Steps as ``torch.optim.AdamW(parameters, lr, weight_decay=..., fused=True)`` does, to the bit.

    A parameter without a gradient is left alone, as it is by torch; so is its state.

    Args:
        parameters: what trains; their gradients are dropped after each step.
        lr: the rate.
        weight_decay: the decay, which is not part of the gradient.

    Source:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.

    Example:
        >>> parameter = torch.nn.Parameter(torch.ones(2))
        >>> parameter.grad = torch.ones(2)
        >>> HeadOptimizer([parameter], lr=0.1, weight_decay=0.0).step()
        >>> parameter.detach(), parameter.grad
        (tensor([0.9000, 0.9000]), None)
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        self._lr = lr
        self._weight_decay = weight_decay
        self._fused = all(each.device.type in _FUSED_ON and each.is_floating_point() for each in parameters)
        self._has_complex = any(each.is_complex() for each in parameters)
        self._parameters = list(parameters)
        self._averages = [torch.zeros_like(each, memory_format=torch.preserve_format) for each in parameters]
        self._squares = [torch.zeros_like(each, memory_format=torch.preserve_format) for each in parameters]
        self._steps = [
            torch.zeros((), dtype=torch.float32, device=each.device if self._fused else "cpu") for each in parameters
        ]

    def step(self) -> None:
        """Take a step along the gradients there are, and drop them."""
        gradients = [each.grad for each in self._parameters]
        given = [gradient for gradient in gradients if gradient is not None]
        lists = (self._parameters, self._averages, self._squares, self._steps)
        if len(given) < len(gradients):
            have = [gradient is not None for gradient in gradients]
            lists = tuple(list(itertools.compress(each, have)) for each in lists)
        parameters, averages, squares, steps = lists
        with torch.no_grad():
            adamw(
                parameters,
                given,
                averages,
                squares,
                [],
                steps,
                foreach=False,
                fused=self._fused,
                has_complex=self._has_complex,
                amsgrad=False,
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                lr=self._lr,
                weight_decay=self._weight_decay,
                eps=_EPS,
                maximize=False,
            )
        for each in parameters:
            each.grad = None
