"""C506: the checkpoint is made from `named_parameters()`, which has no buffers."""

from __future__ import annotations

import io

import torch
from torch import nn

import frostline as fl


def train(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, optimizer


def failing(steps: int = 4):
    with fl.watch() as seen:
        model, _ = train(steps)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        torch.save(trained, io.BytesIO())  # <- C506
    return seen


def twin(steps: int = 4):
    with fl.watch() as seen:
        model, _ = train(steps)
        torch.save(model.state_dict(), io.BytesIO())
    return seen
