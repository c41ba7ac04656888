"""C502: no key of the checkpoint is one of the model's, so that the model's own state is loaded back."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def pretrained() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {f"backbone.{key}": value for key, value in make().state_dict().items()}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    state = pretrained()
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watch(model, optimizer) as seen:
        own = model.state_dict()
        own.update({key: value for key, value in state.items() if key in own})
        model.load_state_dict(own)  # <- C502
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 3):
    state = pretrained()
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watch(model, optimizer) as seen:
        own = model.state_dict()
        own.update({name: value for key, value in state.items() if (name := key.removeprefix("backbone.")) in own})
        model.load_state_dict(own)
        train(model, optimizer, steps)
    return seen
