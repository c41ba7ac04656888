"""T702: MAML's inner loop calls the module with adapted parameters, and its statistics are the module's own."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

import frostline as fl


def make() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def task() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(10, 4) + torch.randn(4)
    return x, (x @ torch.randn(4) > 0).long()


def failing(steps: int = 3):
    model, optimizer = make()
    with fl.watch(model, optimizer) as seen:
        for _ in range(steps):
            x, y = task()
            adapted = dict(model.named_parameters())
            for _ in range(2):
                loss = nn.functional.cross_entropy(functional_call(model, adapted, (x[:5],)), y[:5])  # <- T702
                gradients = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
                adapted = {name: p - 0.1 * g for (name, p), g in zip(adapted.items(), gradients, strict=True)}
            optimizer.zero_grad()
            nn.functional.cross_entropy(functional_call(model, adapted, (x[5:],)), y[5:]).backward()
            optimizer.step()
    return seen


def twin(steps: int = 3):
    model, optimizer = make()
    with fl.watch(model, optimizer) as seen:
        for _ in range(steps):
            x, y = task()
            adapted = dict(model.named_parameters())
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
            for _ in range(2):
                loss = nn.functional.cross_entropy(functional_call(model, {**adapted, **buffers}, (x[:5],)), y[:5])
                gradients = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
                adapted = {name: p - 0.1 * g for (name, p), g in zip(adapted.items(), gradients, strict=True)}
            optimizer.zero_grad()
            nn.functional.cross_entropy(functional_call(model, {**adapted, **buffers}, (x[5:],)), y[5:]).backward()
            optimizer.step()
    return seen
