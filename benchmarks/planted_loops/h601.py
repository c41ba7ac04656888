"""H601: the hidden layers are in a list, of which torch knows nothing."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.layers = [nn.Linear(8, 8) for _ in range(3)]  # <- H601
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


class Registered(Listed):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(self.layers)


def train(model, optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Listed()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Registered()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen
