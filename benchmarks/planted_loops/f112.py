"""F112: a group is marked `freeze`, which SGD does not know."""

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


class FreezableSGD(torch.optim.SGD):
    """SGD that leaves out groups that say so."""

    def __init__(self, groups, lr):
        super().__init__(groups, lr=lr)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if group.get("freeze"):
                    p.grad = None
        return super().step(closure)


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
        groups = [
            {"params": model.trunk.parameters(), "freeze": True},  # <- F112
            {"params": model.head.parameters()},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.1)
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        groups = [
            {"params": model.trunk.parameters(), "freeze": True},
            {"params": model.head.parameters()},
        ]
        optimizer = FreezableSGD(groups, lr=0.1)
        train(model, optimizer, steps)
    return seen
