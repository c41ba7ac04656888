"""C504: the head was put in front of the trunk since the optimizer was saved, and its momenta go by position."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

import frostline as fl


def make() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"trunk": nn.Linear(4, 4), "head": nn.Linear(4, 3)})


def train(model: nn.ModuleDict, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model["head"](model["trunk"](x).relu()), y).backward()
        optimizer.step()


def saved() -> tuple[nn.ModuleDict, dict]:
    """What the run before left behind."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 2)
    return model, optimizer.state_dict()


def failing(steps: int = 3):
    model, state = saved()
    watcher = fl.watch(model)
    with contextlib.suppress(RuntimeError), watcher:
        optimizer = torch.optim.SGD([*model["head"].parameters(), *model["trunk"].parameters()], lr=0.1, momentum=0.9)
        optimizer.load_state_dict(state)  # <- C504
        train(model, optimizer, steps)
    return watcher.seen


def twin(steps: int = 3):
    model, state = saved()
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer.load_state_dict(state)
        train(model, optimizer, steps)
    return seen
