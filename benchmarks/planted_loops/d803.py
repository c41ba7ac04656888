"""D803: the training pass calls `ddp.module`, so that gradients are never averaged."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from planted_loops.single_process import process_group


def make() -> tuple[DistributedDataParallel, torch.optim.Optimizer]:
    torch.manual_seed(0)
    ddp = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    return ddp, torch.optim.SGD(ddp.parameters(), lr=0.1)


def failing(steps: int = 3):
    with process_group(), fl.watch() as seen:
        ddp, optimizer = make()
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(ddp.module(x), y)  # <- D803
            loss.backward()
            optimizer.step()
    return seen


def twin(steps: int = 3):
    with process_group(), fl.watch() as seen:
        ddp, optimizer = make()
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(ddp(x), y)
            loss.backward()
            optimizer.step()
        ddp.eval()
        with torch.no_grad():
            ddp.module(torch.randn(16, 4))
    return seen
