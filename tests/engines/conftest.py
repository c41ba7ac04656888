"""A small net with state that drifts, and a look at its bytes that shares no code with frostline's digests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A stem and a body with batch norm, a stem with dropout, and a head."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout))
        self.body = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


@pytest.fixture
def make_net() -> Callable[..., Net]:
    """The same net with the same values each time, and with statistics that are not those it is built with."""

    def make(dropout: float = 0.5) -> Net:
        torch.manual_seed(0)
        net = Net(dropout)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
                module.num_batches_tracked.fill_(3)
        return net

    return make


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 6, generator=generator) for _ in range(8)]


@pytest.fixture
def bytes_of() -> Callable[[nn.Module], dict[str, bytes]]:
    def read(module: nn.Module) -> dict[str, bytes]:
        return {
            name: tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            for name, tensor in module.state_dict().items()
        }

    return read


@pytest.fixture
def moved() -> Callable[[dict[str, bytes], dict[str, bytes]], set[str]]:
    """The names whose bytes differ."""

    def compare(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
        return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}

    return compare
