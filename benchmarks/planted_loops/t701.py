"""T701: the inner loop is given copies of the statistics, the test passes are not, and run in train mode."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def task() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(10, 4) + torch.randn(4)
    return x, (x @ torch.randn(4) > 0).long()


def adapt(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    adapted = dict(model.named_parameters())
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(2):
        loss = nn.functional.cross_entropy(functional_call(model, {**adapted, **buffers}, (x,)), y)
        gradients = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
        adapted = {name: p - 0.1 * g for (name, p), g in zip(adapted.items(), gradients, strict=True)}
    return {**adapted, **buffers}


def meta_train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        x, y = task()
        optimizer.zero_grad()
        adapted = adapt(model, x[:5], y[:5])
        nn.functional.cross_entropy(functional_call(model, adapted, (x[5:],)), y[5:]).backward()
        optimizer.step()


def failing(steps: int = 3):
    model = make()
    with fl.watch(model) as seen:
        meta_train(model, steps)
        for _ in range(3):
            x, y = task()
            adapted = adapt(model, x[:5], y[:5])
            weights = {name: adapted[name] for name, _ in model.named_parameters()}
            with torch.no_grad():
                functional_call(model, weights, (x[5:],)).argmax(1).eq(y[5:])  # <- T701
    return seen


def twin(steps: int = 3):
    model = make()
    with fl.watch(model) as seen:
        meta_train(model, steps)
        for _ in range(3):
            x, y = task()
            adapted = adapt(model, x[:5], y[:5])
            with torch.no_grad():
                functional_call(model, adapted, (x[5:],)).argmax(1).eq(y[5:])
    return seen
