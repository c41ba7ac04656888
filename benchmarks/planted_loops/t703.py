"""T703: each task begins with the parameters set back, and with the running statistics of the task before."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def train_and_test(model: nn.Module) -> float:
    x = torch.randn(20, 4) + torch.randn(4)
    y = (x @ torch.randn(4) > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:10]), y[:10]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return float((model(x[10:]).argmax(1) == y[10:]).float().mean())


def failing(tasks: int = 3):
    model = make()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with fl.watch(model) as seen:
        for _ in range(tasks):
            model.load_state_dict(start, strict=False)  # <- T703
            train_and_test(model)
    return seen


def twin(tasks: int = 3):
    model = make()
    start = deepcopy(model.state_dict())
    with fl.watch(model) as seen:
        for _ in range(tasks):
            model.load_state_dict(start)
            train_and_test(model)
    return seen
