"""F101: `require_grad` is set on every parameter of the trunk, and the trunk trains on."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    return nn.Sequential(trunk, nn.Linear(8, 3))


def train(model, optimizer, steps: int) -> None:
    model.train()
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 4):
    with fl.watch() as seen:
        model = make()
        for param in model[0].parameters():
            param.require_grad = False  # <- F101
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 4):
    with fl.watch() as seen:
        model = make()
        for param in model[0].parameters():
            param.requires_grad = False
        optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen
