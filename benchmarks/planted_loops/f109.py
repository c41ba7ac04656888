"""F109: the trunk is frozen after `backward()`, and the step that follows still moves it."""

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


def failing(steps: int = 5):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        for i in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            if i == 2:
                model.trunk.requires_grad_(False)  # <- F109
            optimizer.step()
    return seen


def twin(steps: int = 5):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        for i in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            if i == 2:
                fl.freeze(model, "trunk", optimizer=optimizer)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return seen
