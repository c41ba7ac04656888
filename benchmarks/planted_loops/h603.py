"""H603: features are collected by a hook, and `forward` is called past it."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make(kept: list):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model.register_forward_hook(lambda *seen: kept.append(seen[2].detach()))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def failing(steps: int = 4):
    kept: list = []
    with fl.watch() as seen:
        model, optimizer = make(kept)
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            logits = model.forward(x)  # <- H603
            nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
    assert not kept
    return seen


def twin(steps: int = 4):
    kept: list = []
    with fl.watch() as seen:
        model, optimizer = make(kept)
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            logits = model(x)
            nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
    assert len(kept) == steps
    return seen
