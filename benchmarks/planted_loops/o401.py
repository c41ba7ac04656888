"""O401: the optimizer is made from what is trainable at the start, and the trunk is unfrozen later."""

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
        optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=0.01)
        train(model, optimizer, steps // 2)
        model.trunk.requires_grad_(True)  # <- O401
        train(model, optimizer, steps - steps // 2)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=0.01)
        train(model, optimizer, steps // 2)
        model.trunk.requires_grad_(True)
        optimizer.add_param_group({"params": model.trunk.parameters(), "lr": 0.001})
        train(model, optimizer, steps - steps // 2)
    return seen
