"""C501: every key of the checkpoint begins with `module.`, and `strict=False` passes over that in silence."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def checkpoint() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {f"module.{key}": value for key, value in make().state_dict().items()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    state = checkpoint()
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watch(model, optimizer) as seen:
        model.load_state_dict(state, strict=False)  # <- C501
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 3):
    state = checkpoint()
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watch(model, optimizer) as seen:
        model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        train(model, optimizer, steps)
    return seen
