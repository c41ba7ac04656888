"""Optimizers of the inner loop as functions: parameters, gradients and state go in, and new ones come out.

They compute what PyTorch's classes compute, so that the outer gradient can go through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from frostline.errors import MetaError

State = tuple[tuple[Tensor, ...], ...]
Rate = float | Tensor


class InnerOptimizer(Protocol):
    """One step of an optimizer, without anything written to."""

    def start(self, params: Sequence[Tensor]) -> State:
        """The state before the first step."""
        ...

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: State, rates: Sequence[Rate], count: int
    ) -> tuple[list[Tensor], State]:
        """New parameters and the new state.

        Args:
            params: what to move.
            grads: their gradients.
            state: what :meth:`start` or the last step returned.
            rates: the learning rate of each, a number or a tensor that broadcasts.
            count: which step this is, counted from 1.
        """
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, as ``torch.optim.SGD``.

    Example:
        >>> SGD().step([torch.tensor(1.0)], [torch.tensor(2.0)], (), [0.25], 1)[0]
        [tensor(0.5000)]
    """

    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def start(self, params: Sequence[Tensor]) -> State:
        """Nothing; a momentum begins with the first gradient."""
        del params
        return ()

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: State, rates: Sequence[Rate], count: int
    ) -> tuple[list[Tensor], State]:
        """Move against the gradient."""
        del count
        if self.weight_decay:
            grads = [g + self.weight_decay * p for p, g in zip(params, grads, strict=True)]
        if self.momentum:
            velocity = (
                [self.momentum * v + (1 - self.dampening) * g for v, g in zip(state[0], grads, strict=True)]
                if state
                else list(grads)
            )
            state = (tuple(velocity),)
            grads = [g + self.momentum * v for g, v in zip(grads, velocity, strict=True)] if self.nesterov else velocity
        return [_moved(p, g, rate) for p, g, rate in zip(params, grads, rates, strict=True)], state


@dataclass(frozen=True)
class Adam:
    """Adam, as ``torch.optim.Adam``; with ``decoupled`` as ``torch.optim.AdamW``.

    Where a gradient has been zero in all steps, the second moment is zero and the square root has no derivative; the
    outer gradient does not go through the scaling there.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = False

    def start(self, params: Sequence[Tensor]) -> State:
        """Two zeros for each parameter."""
        zeros = tuple(torch.zeros_like(p) for p in params)
        return zeros, zeros

    def step(
        self, params: Sequence[Tensor], grads: Sequence[Tensor], state: State, rates: Sequence[Rate], count: int
    ) -> tuple[list[Tensor], State]:
        """Move by the corrected moments."""
        beta1, beta2 = self.betas
        new: list[Tensor] = []
        first: list[Tensor] = []
        second: list[Tensor] = []
        decay, coupled = self.weight_decay, self.weight_decay and not self.decoupled
        for param, grad, old_m, old_v, rate in zip(params, grads, *state, rates, strict=True):
            start = param * (1 - rate * decay) if decay and self.decoupled else param
            g = grad + decay * param if coupled else grad
            m = beta1 * old_m + (1 - beta1) * g
            v = beta2 * old_v + (1 - beta2) * g.square()
            # The derivative of the root at zero is infinite, and 0 * inf would make the whole outer gradient NaN.
            still = v == 0
            root = torch.where(still, torch.zeros_like(v), torch.where(still, torch.ones_like(v), v).sqrt())
            step = m / (1 - beta1**count) / (root / (1 - beta2**count) ** 0.5 + self.eps)
            new.append(start - rate * step)
            first.append(m)
            second.append(v)
        return new, (tuple(first), tuple(second))


def _moved(parameter: Tensor, step: Tensor, rate: Rate) -> Tensor:
    """One operator where the rate is a number: as PyTorch's optimizers do it, and half the memory in the graph."""
    return parameter - rate * step if isinstance(rate, Tensor) else torch.sub(parameter, step, alpha=rate)


def functional_form(optimizer: Any) -> InnerOptimizer:
    """The functional form of an optimizer.

    Args:
        optimizer: one of this module, ``"sgd"``, ``"adam"``, or an optimizer of ``torch.optim`` with one group, whose
            settings are taken and whose learning rate is not: rates belong to the learner.

    Raises:
        MetaError: it has no functional form here.

    Example:
        >>> functional_form(torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9))
        SGD(momentum=0.9, dampening=0, weight_decay=0, nesterov=False)
    """
    if isinstance(optimizer, (SGD, Adam)):
        return optimizer
    if isinstance(optimizer, str) and optimizer in ("sgd", "adam"):
        return SGD() if optimizer == "sgd" else Adam()
    if isinstance(optimizer, Optimizer) and type(optimizer) in _TORCH:
        if len(optimizer.param_groups) != 1:
            raise MetaError(
                f"the inner {type(optimizer).__name__} has {len(optimizer.param_groups)} parameter groups, and the "
                "inner loop has one setting for all\n  fix: one group; rates for each parameter are learn_rates="
            )
        options = optimizer.param_groups[0]
        refused = [name for name in ("maximize", "amsgrad") if options.get(name)]
        if refused:
            raise MetaError(f"the inner {type(optimizer).__name__} has {refused[0]}=True, which has no functional form")
        if isinstance(optimizer, torch.optim.SGD):
            names = ("momentum", "dampening", "weight_decay", "nesterov")
            return SGD(**{name: options[name] for name in names})
        decoupled = isinstance(optimizer, torch.optim.AdamW) or bool(options.get("decoupled_weight_decay"))
        return Adam(**{name: options[name] for name in ("betas", "eps", "weight_decay")}, decoupled=decoupled)
    if not isinstance(optimizer, (str, type, Optimizer)) and hasattr(optimizer, "start") and hasattr(optimizer, "step"):
        return optimizer
    shown = type(optimizer).__name__ if not isinstance(optimizer, (str, type)) else repr(optimizer)
    raise MetaError(
        f"the inner loop cannot use {shown}: it has no functional form that a gradient could go through\n"
        "  found with one: SGD (momentum, nesterov, weight decay), Adam, AdamW\n"
        "  fix: inner_optimizer='sgd', 'adam', or an instance of torch.optim.SGD, Adam or AdamW; a class of your own "
        "with start() and step() as in frostline.meta.InnerOptimizer"
    )


_TORCH = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
