"""S451: the trunk is unfrozen during the warm-up, and its group is multiplied by what is left of it."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.trunk(x))


def train(model, optimizer, scheduler, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()


def failing(schedule=torch.optim.lr_scheduler.LinearLR, **settings):
    torch.manual_seed(0)
    watcher = fl.watch()
    try:
        with watcher:
            model = Net()
            model.trunk.requires_grad_(False)
            optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
            scheduler = schedule(optimizer, **(settings or {"start_factor": 0.1, "total_iters": 5}))
            train(model, optimizer, scheduler, 1)
            model.trunk.requires_grad_(True)
            optimizer.add_param_group({"params": model.trunk.parameters(), "lr": 0.01})  # <- S451
            train(model, optimizer, scheduler, 4)
    except (ValueError, KeyError):
        pass
    return watcher.seen


def twin():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.SGD(
            [{"params": model.head.parameters()}, {"params": model.trunk.parameters(), "lr": 0.01}], lr=0.1
        )
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=5)
        train(model, optimizer, scheduler, 1)
        model.trunk.requires_grad_(True)
        train(model, optimizer, scheduler, 4)
    return seen
