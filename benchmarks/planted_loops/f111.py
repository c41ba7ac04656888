"""F111: the trunk's group gets the rate 0, and the scheduler lifts it."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

import frostline as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.trunk(x))


class NormNet(Net):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        groups = [{"params": model.trunk.parameters(), "lr": 0.0}, {"params": model.head.parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        scheduler = CosineAnnealingLR(optimizer, T_max=10, eta_min=0.01)
        model.train()
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step()  # <- F111
    return seen


def statistics(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = NormNet()
        groups = [{"params": model.trunk.parameters(), "lr": 0.0}, {"params": model.head.parameters()}]
        optimizer = torch.optim.Adam(groups, lr=0.1)
        model.train()
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        fl.freeze(model, "trunk")
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        scheduler = CosineAnnealingLR(optimizer, T_max=10, eta_min=0.01)
        model.train()
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step()
    return seen
