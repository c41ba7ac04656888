"""O413: the optimizer gets the part that is frozen."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.trunk(x))


def train(model, optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.Adam(model.trunk.parameters(), lr=0.01)  # <- O413
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
        train(model, optimizer, steps)
    return seen
