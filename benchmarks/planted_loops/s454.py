"""S454: the run had got a second group when it was saved; the script that resumes it makes one."""

from __future__ import annotations

import io

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


def train(model, optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def first_run() -> io.BytesIO:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
    optimizer.add_param_group({"params": model.trunk.parameters(), "lr": 0.001})
    train(model, optimizer, 2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    return file


def failing(steps: int = 3):
    file = first_run()
    watcher = fl.watch()
    try:
        with watcher:
            checkpoint = torch.load(file)
            model = Net()
            model.load_state_dict(checkpoint["model"])
            optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
            optimizer.load_state_dict(checkpoint["optimizer"])  # <- S454
            train(model, optimizer, steps)
    except ValueError:
        pass
    return watcher.seen


def twin(steps: int = 3):
    file = first_run()
    with fl.watch() as seen:
        checkpoint = torch.load(file)
        model = Net()
        model.load_state_dict(checkpoint["model"])
        optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
        optimizer.add_param_group({"params": model.trunk.parameters(), "lr": 0.001})
        optimizer.load_state_dict(checkpoint["optimizer"])
        train(model, optimizer, steps)
    return seen
