"""D805: the parameters to freeze were listed before sharding, which put others in their place."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import frostline as fl
from planted_loops.single_process import process_group


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3))


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    with process_group(), fl.watch() as seen:
        model = make()
        frozen = list(model[0].parameters())
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        for p in frozen:
            p.requires_grad_(False)  # <- D805
        train(model, steps)
    return seen


def twin(steps: int = 3):
    with process_group(), fl.watch() as seen:
        model = make()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        for p in model[0].parameters():
            p.requires_grad_(False)
        train(model, steps)
    return seen
