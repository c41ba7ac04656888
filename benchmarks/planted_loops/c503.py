"""C503: the best state is kept as `state_dict()`, whose tensors are the model's own and go on training."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

import frostline as fl


def make() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def score(model: nn.Module) -> float:
    model.eval()
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def failing(epochs: int = 4):
    model, optimizer = make()
    best, best_state = -1.0, None
    with fl.watch(model, optimizer) as seen:
        for epoch in range(epochs):
            train(model, optimizer)
            accuracy = score(model) - epoch
            if accuracy > best:
                best, best_state = accuracy, model.state_dict()  # <- C503
        model.load_state_dict(best_state)
    return seen


def twin(epochs: int = 4):
    model, optimizer = make()
    best, best_state = -1.0, None
    with fl.watch(model, optimizer) as seen:
        for epoch in range(epochs):
            train(model, optimizer)
            accuracy = score(model) - epoch
            if accuracy > best:
                best, best_state = accuracy, deepcopy(model.state_dict())
        model.load_state_dict(best_state)
    return seen
