"""M205: `functional.dropout` without `training=`, which is true by default."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody types it

import frostline as fl


class Careless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = F.dropout(F.relu(self.first(x)), 0.5)  # <- M205
        return self.last(x)


class Careful(Careless):
    def forward(self, x):
        x = F.dropout(F.relu(self.first(x)), 0.5, training=self.training)
        return self.last(x)


def fit(net: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.train()
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        net(torch.randn(16, 4)).argmax(1)


def failing(steps: int = 3):
    torch.manual_seed(0)
    with fl.watch() as seen:
        fit(Careless(), steps)
    return seen


def twin(steps: int = 3):
    torch.manual_seed(0)
    with fl.watch() as seen:
        fit(Careful(), steps)
    return seen
