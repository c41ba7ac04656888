"""O408: ten micro-batches, four for each step, and a step at `i % 4 == 0`: after 1, 4 and 4, and one is left."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def failing(batches: int = 10):
    torch.manual_seed(0)
    loader = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(batches)]
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        accumulation_steps = 4
        for i, (x, y) in enumerate(loader):
            loss = nn.functional.cross_entropy(model(x), y) / accumulation_steps
            loss.backward()
            if i % accumulation_steps == 0:
                optimizer.step()  # <- O408
                optimizer.zero_grad()
    return seen


def dropped(batches: int = 10, epochs: int = 2):
    """The other form of the mistake: the rest of each epoch is cleared without a step."""
    torch.manual_seed(0)
    loader = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(batches)]
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(epochs):
            optimizer.zero_grad()  # <- O408 dropped
            for i, (x, y) in enumerate(loader):
                loss = nn.functional.cross_entropy(model(x), y) / 4
                loss.backward()
                if (i + 1) % 4 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
    return seen


def twin(batches: int = 10):
    torch.manual_seed(0)
    loader = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(batches)]
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        accumulation_steps = 4
        for i, (x, y) in enumerate(loader):
            loss = nn.functional.cross_entropy(model(x), y) / accumulation_steps
            loss.backward()
            if (i + 1) % accumulation_steps == 0 or i + 1 == len(loader):
                optimizer.step()
                optimizer.zero_grad()
    return seen
