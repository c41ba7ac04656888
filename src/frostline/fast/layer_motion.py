"""How far layers go within some optimizer steps, and how large their gradients are meanwhile.

Knows tensors and optimizers; judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(frozen=True)
class Motion:
    """What one layer did in one window.

    Attributes:
        gradient: the root mean square, over the steps, of the norm of its gradient; ``None`` where it never had one.
        update: how far its weights are from where the window began, as a part of their norm: of the layer as a whole,
            or of the matrix or kernel in it that went farthest, whichever is more.
        rate: the highest learning rate of its groups.
    """

    gradient: float | None
    update: float
    rate: float


class Window:
    """Watches some layers, from now on until :meth:`close`.

    It keeps a copy of the weights that it watches, and reads each gradient once a step, without waiting for the device.

    Args:
        layers: number of each layer to its parameters by path.
        optimizer: what moves them.

    Attributes:
        steps: how many were kept.
        rates: the highest learning rate, by the number of its group, of every group in which something trained.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
        >>> _ = nn.init.ones_(layer.weight)
        >>> window = Window({0: dict(layer.named_parameters())}, optimizer)
        >>> layer.weight.grad = torch.ones(1, 1)
        >>> window.read(); window.keep(); optimizer.step()
        >>> window.close()[0]
        Motion(gradient=1.0, update=0.5, rate=0.5)
    """

    def __init__(self, layers: Mapping[int, Mapping[str, nn.Parameter]], optimizer: Optimizer) -> None:
        self.steps = 0
        self.rates: dict[int, float] = {}
        self._optimizer = optimizer
        self._layers = {number: dict(members) for number, members in layers.items()}
        self._starts = {
            number: [parameter.detach().clone() for parameter in members.values()]
            for number, members in self._layers.items()
        }
        self._groups = {
            number: [
                index
                for index, group in enumerate(optimizer.param_groups)
                if {id(parameter) for parameter in members.values()} & {id(parameter) for parameter in group["params"]}
            ]
            for number, members in self._layers.items()
        }
        self._highest = dict.fromkeys(self._layers, 0.0)
        self._squares: dict[int, Tensor] = {}
        self._read: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """How much the copies take."""
        return sum(tensor.nbytes for starts in self._starts.values() for tensor in starts)

    def covers(self, layers: Mapping[int, Mapping[str, nn.Parameter]], number: int) -> bool:
        """Whether a layer still consists of the parameters that the window began with."""
        then, now = self._layers.get(number, {}), layers.get(number, {})
        return list(then) == list(now) and all(then[path] is now[path] for path in then)

    def read(self) -> None:
        """Look at the gradients, and forget what was read and not kept."""
        scale: Any = getattr(self._optimizer, "grad_scale", None)
        for number, members in self._layers.items():
            norms = [_norm(parameter.grad) for parameter in members.values() if parameter.grad is not None]
            self._read.pop(number, None)
            if norms:
                total = _joined(norms)
                # A fused optimizer is given scaled gradients, and the scale beside them.
                self._read[number] = total if scale is None else total / scale

    def keep(self) -> None:
        """Count a step with the gradients that were read, at the rates that the groups have now."""
        self.steps += 1
        groups = self._optimizer.param_groups
        for number, read in self._read.items():
            square = read.square()
            self._squares[number] = self._squares[number] + square if number in self._squares else square
        for number, indices in self._groups.items():
            self._highest[number] = max([self._highest[number], *(float(groups[index]["lr"]) for index in indices)])
        for index, group in enumerate(groups):
            if any(parameter.requires_grad for parameter in group["params"]):
                self.rates[index] = max(self.rates.get(index, 0.0), float(group["lr"]))
        self._read = {}

    def close(self) -> dict[int, Motion]:
        """What each layer did; only reads."""
        return {
            number: Motion(self._gradient(number), self._update(number), self._highest[number])
            for number in self._layers
        }

    def _gradient(self, number: int) -> float | None:
        if number not in self._squares:
            return None
        square = float(self._squares[number])
        return math.sqrt(square / self.steps) if square >= 0 else math.nan

    @torch.no_grad()
    def _update(self, number: int) -> float:
        now = [parameter.detach() for parameter in self._layers[number].values()]
        starts = self._starts[number]
        ways = [_norm(end - start) for end, start in zip(now, starts, strict=True)]
        before, after = [_norm(each) for each in starts], [_norm(each) for each in now]
        rows = [(_joined(ways), _joined(before), _joined(after))]
        # A bias, which may begin at 0, is compared with the layer; a matrix that goes far by itself is seen.
        rows += [row for row, value in zip(zip(ways, before, after, strict=True), now, strict=True) if value.ndim > 1]
        shares = torch.stack([torch.stack([each.to(rows[0][0].device) for each in row]) for row in rows]).tolist()
        return max((_share(way, max(one, other)) for way, one, other in shares), key=_nan_first)


def _norm(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    narrow = tensor.dtype in (torch.float16, torch.bfloat16)
    return torch.linalg.vector_norm(tensor, dtype=torch.float32 if narrow else None).float()


def _joined(norms: Iterable[Tensor]) -> Tensor:
    several = list(norms)
    return torch.linalg.vector_norm(torch.stack([norm.to(several[0].device) for norm in several]))


def _share(way: float, norm: float) -> float:
    if way == 0:
        return 0.0
    return way / norm if norm else math.inf


def _nan_first(value: float) -> tuple[bool, float]:
    return math.isnan(value), value
