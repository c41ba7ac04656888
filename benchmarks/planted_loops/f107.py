"""F107: the trunk has no trainable parameter, and `model.train()` lets its statistics move."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    return nn.Sequential(trunk, nn.Linear(8, 3))


def failing(steps: int = 4):
    model = make()
    for p in model[0].parameters():
        p.requires_grad = False
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    with fl.watch(model, optimizer) as seen:
        model.train()
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            logits = model(x)  # <- F107
            nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
    return seen


def twin(steps: int = 4):
    model = make()
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    fl.freeze(model, "0", optimizer=optimizer)
    with fl.watch(model, optimizer) as seen:
        model.train()
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            logits = model(x)
            nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
    return seen
