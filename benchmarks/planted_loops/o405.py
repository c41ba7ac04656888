"""O405: the parameters are counted, and the same `filter` is given to the optimizer."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model


def train(model, optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    watcher = fl.watch()
    try:
        with watcher:
            model = make()
            params = filter(lambda p: p.requires_grad, model.parameters())
            count = sum(p.numel() for p in params)  # <- O405
            optimizer = torch.optim.SGD(params, lr=0.1)
            train(model, optimizer, steps)
            print(f"{count} parameters trained")
    except ValueError:
        pass
    return watcher.seen


def twin(steps: int = 3):
    with fl.watch() as seen:
        model = make()
        params = [p for p in model.parameters() if p.requires_grad]
        count = sum(p.numel() for p in params)
        optimizer = torch.optim.SGD(params, lr=0.1)
        train(model, optimizer, steps)
        assert count == 27
    return seen
