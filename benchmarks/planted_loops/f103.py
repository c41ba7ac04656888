"""F103: the method `requires_grad_` is overwritten with a value, or the flag is compared with `==`."""

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


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        for p in model.backbone.parameters():
            p.requires_grad_ = False  # <- F103
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen


def comparing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        net = Net()
        for p in net.backbone.parameters():
            p.requires_grad == False  # noqa: B015, E712 # <- F103
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        train(net, optimizer, steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        for p in model.backbone.parameters():
            p.requires_grad_(False)
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen
