"""O407: `zero_grad` stands between `backward` and `step`."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.zero_grad()  # <- O407
            optimizer.step()
    return seen


def per_micro_batch(steps: int = 3, k: int = 4):
    """The other form of the mistake: accumulation that clears at every micro-batch."""
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(steps * k):
            x, y = torch.randn(8, 4), torch.randint(3, (8,))
            optimizer.zero_grad()  # <- O407 per micro-batch
            loss = nn.functional.cross_entropy(model(x), y) / k
            loss.backward()
            if (i + 1) % k == 0:
                optimizer.step()
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return seen
