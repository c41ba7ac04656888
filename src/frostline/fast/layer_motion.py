"""How far layers go within some optimizer steps, and how large their gradients are meanwhile.

Knows tensors and optimizers; judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
        # All gradients in one row, because a call for each of them would cost more than the sums.
        self._parameters = [parameter for members in self._layers.values() for parameter in members.values()]
        self._squares: Tensor | None = None
        self._read: Tensor | None = None
        self._read_of: list[bool] = []
        self._seen = [False] * len(self._parameters)

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
        gradients = [parameter.grad for parameter in self._parameters]
        self._read, self._read_of = None, [gradient is not None for gradient in gradients]
        found = [gradient for gradient in gradients if gradient is not None]
        if found:
            norms = _norms(found)
            # A fused optimizer is given scaled gradients, and the scale beside them.
            norms = norms if scale is None else norms / scale.to(norms.device)
            if len(found) < len(gradients):
                norms = norms.new_zeros(len(gradients)).masked_scatter_(
                    torch.tensor(self._read_of, device=norms.device), norms
                )
            self._read = norms

    def keep(self) -> None:
        """Count a step with the gradients that were read, at the rates that the groups have now."""
        self.steps += 1
        groups = self._optimizer.param_groups
        if self._read is not None:
            squares = self._read.square_()
            self._squares = squares if self._squares is None else self._squares.add_(squares)
            self._seen = [before or now for before, now in zip(self._seen, self._read_of, strict=True)]
        for number, indices in self._groups.items():
            self._highest[number] = max([self._highest[number], *(float(groups[index]["lr"]) for index in indices)])
        for index, group in enumerate(groups):
            if any(parameter.requires_grad for parameter in group["params"]):
                self.rates[index] = max(self.rates.get(index, 0.0), float(group["lr"]))
        self._read = None

    def close(self) -> dict[int, Motion]:
        """What each layer did; only reads."""
        squares = [0.0] * len(self._parameters) if self._squares is None else self._squares.tolist()
        motions: dict[int, Motion] = {}
        start = 0
        for number, members in self._layers.items():
            own = slice(start, start := start + len(members))
            seen = any(self._seen[own])
            gradient = math.sqrt(math.fsum(squares[own]) / self.steps) if seen else None
            motions[number] = Motion(gradient, self._update(number), self._highest[number])
        return motions

    @torch.no_grad()
    def _update(self, number: int) -> float:
        now = [parameter.detach() for parameter in self._layers[number].values()]
        starts = self._starts[number]
        ways = _norms([end - start for end, start in zip(now, starts, strict=True)])
        table = torch.stack([ways, _norms(starts), _norms(now)])
        whole: list[float] = torch.linalg.vector_norm(table, dim=1).tolist()
        # A bias, which may begin at 0, is compared with the layer; a matrix that goes far by itself is seen.
        rows = [whole, *(row for row, value in zip(table.T.tolist(), now, strict=True) if value.ndim > 1)]
        return max((_share(way, max(one, other)) for way, one, other in rows), key=_nan_first)


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of each, in one tensor on the device of the first."""
    with torch.no_grad():
        dense = [tensor.coalesce().values() if tensor.is_sparse else tensor for tensor in tensors]
        # The square of a half-precision number leaves its range early.
        wide = [tensor.float() if tensor.dtype.itemsize < 4 else tensor for tensor in dense]
        if not any(tensor.is_complex() for tensor in wide):
            norms: Sequence[Tensor] = torch._foreach_norm(wide)  # pyright: ignore[reportPrivateImportUsage]
        else:
            norms = [torch.linalg.vector_norm(tensor) for tensor in wide]
        return torch.stack([norm.to(norms[0].device, torch.float32) for norm in norms])


def _share(way: float, norm: float) -> float:
    if way == 0:
        return 0.0
    return way / norm if norm else math.inf


def _nan_first(value: float) -> tuple[bool, float]:
    return math.isnan(value), value
