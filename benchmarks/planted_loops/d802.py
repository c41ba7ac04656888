"""D802: the head is replaced after `DistributedDataParallel` was made, which still has the old one's parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from planted_loops.single_process import process_group


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 10))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    with process_group(), fl.watch() as seen:
        net = make()
        model = DistributedDataParallel(net, find_unused_parameters=True)
        net[2] = nn.Linear(8, 3)  # <- D802
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 3):
    with process_group(), fl.watch() as seen:
        net = make()
        net[2] = nn.Linear(8, 3)
        model = DistributedDataParallel(net)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen
