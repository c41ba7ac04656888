"""D806: the optimizer is made before sharding, and holds parameters that the model no longer has."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import frostline as fl
from planted_loops.single_process import process_group


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    with process_group(), fl.watch() as seen:
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # <- D806
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 3):
    with process_group(), fl.watch() as seen:
        model = make()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen
