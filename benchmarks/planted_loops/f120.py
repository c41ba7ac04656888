"""F120: the class freezes its backbone in `train()`, and the loop never calls it."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def train(self, mode=True):
        super().train(mode)
        self._freeze_backbone()
        return self

    def _freeze_backbone(self):
        for p in self.backbone.parameters():
            p.requires_grad = False  # <- F120
        self.backbone.eval()

    def forward(self, x):
        return self.head(self.backbone(x))


def fit(model, optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(model, optimizer, steps)
    return seen


def late(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(model, optimizer, steps)
        model.eval()
        model.train()
        fit(model, optimizer, steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        model.train()
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        fit(model, optimizer, steps)
    return seen
