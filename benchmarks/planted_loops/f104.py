"""F104: a generator of `requires_grad_` calls that nobody consumes."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.backbone(x))


def train(model, optimizer, steps: int) -> None:
    model.train()
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def freeze_lazily(module):
    map(lambda p: p.requires_grad_(False), module.parameters())  # noqa: C417


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        (p.requires_grad_(False) for p in model.backbone.parameters())  # <- F104
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen


def mapping(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        freeze_lazily(model.backbone)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        list(p.requires_grad_(False) for p in model.backbone.parameters())  # noqa: C400
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen
