"""S452: the scheduler steps at the top of the loop, as one did before torch 1.1."""

from __future__ import annotations

import warnings

import torch
from torch import nn

import frostline as fl


def failing(epochs: int = 4):
    torch.manual_seed(0)
    with warnings.catch_warnings(), fl.watch() as seen:
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for _ in range(epochs):
            scheduler.step()  # <- S452
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return seen


def twin(epochs: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for _ in range(epochs):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step()
    return seen
