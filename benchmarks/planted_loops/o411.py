"""O411: the head alone is trained, and the gradients of the whole model are clipped."""

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


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <- O411
            optimizer.step()
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            torch.nn.utils.clip_grad_norm_(model.head.parameters(), 1.0)
            optimizer.step()
    return seen
