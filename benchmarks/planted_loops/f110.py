"""F110: the trunk is frozen in the middle of training, and momentum carries it on."""

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


def failing(steps: int = 6):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        model.train()
        for i in range(steps):
            if i == 2:
                model.trunk.requires_grad_(False)
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad(set_to_none=False)  # <- F110
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return seen


def twin(steps: int = 6):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        model.train()
        for i in range(steps):
            if i == 2:
                model.trunk.requires_grad_(False)
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return seen
