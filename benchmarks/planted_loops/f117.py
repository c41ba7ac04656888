"""F117: the backbone runs under `no_grad`, although the optimizer has it."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.backbone(x))


class CutNet(Net):
    def forward(self, x):
        with torch.no_grad():  # <- F117
            features = self.backbone(x)
        return self.head(features)


class DetachedNet(Net):
    def forward(self, x):
        features = self.backbone(x)
        features = features.detach()
        return self.head(features)


def train(model, optimizer, steps: int) -> None:
    model.train()
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = CutNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen


def detached(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = DetachedNet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen


def from_outside(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            with torch.no_grad():
                features = model.backbone(x)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model.head(features), y).backward()
            optimizer.step()
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen
