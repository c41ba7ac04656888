"""C505: the optimizer is made with a rate for fine-tuning, and its old state brings the old rate back."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def saved() -> tuple[nn.Sequential, dict]:
    """What pretraining left behind."""
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 2)
    return model, optimizer.state_dict()


def failing(steps: int = 3):
    model, state = saved()
    with fl.watch(model) as seen:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
        optimizer.load_state_dict(state)  # <- C505
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 3):
    model, state = saved()
    with fl.watch(model) as seen:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
        optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group.update(lr=1e-4, weight_decay=0.1)
        train(model, optimizer, steps)
    return seen
