"""C509: a run with a frozen trunk is resumed in a new model, and the state_dict says nothing of freezing."""

from __future__ import annotations

import io

import torch
from torch import nn

import frostline as fl


def make() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    file = io.BytesIO()
    with fl.watch() as seen:
        model, optimizer = make()
        model[0].requires_grad_(False)
        train(model, optimizer, steps)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        checkpoint = torch.load(file)
        resumed, resumed_optimizer = make()
        resumed.load_state_dict(checkpoint["model"])  # <- C509
        resumed_optimizer.load_state_dict(checkpoint["optimizer"])
        train(resumed, resumed_optimizer, steps)
    return seen


def twin(steps: int = 3):
    file = io.BytesIO()
    with fl.watch() as seen:
        model, optimizer = make()
        model[0].requires_grad_(False)
        train(model, optimizer, steps)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        checkpoint = torch.load(file)
        resumed, resumed_optimizer = make()
        resumed.load_state_dict(checkpoint["model"])
        resumed[0].requires_grad_(False)
        resumed_optimizer.load_state_dict(checkpoint["optimizer"])
        train(resumed, resumed_optimizer, steps)
    return seen
