"""T704: the inner step writes into the tensors that it was given, which are the meta-parameters."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

import frostline as fl


def make() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
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
                loss = nn.functional.cross_entropy(functional_call(model, adapted, (x[:5],)), y[:5])
                gradients = torch.autograd.grad(loss, list(adapted.values()))
                with torch.no_grad():
                    for name, g in zip(adapted, gradients, strict=True):
                        adapted[name] -= 0.1 * g  # <- T704
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
            for _ in range(2):
                loss = nn.functional.cross_entropy(functional_call(model, adapted, (x[:5],)), y[:5])
                gradients = torch.autograd.grad(loss, list(adapted.values()), create_graph=True)
                adapted = {name: p - 0.1 * g for (name, p), g in zip(adapted.items(), gradients, strict=True)}
            optimizer.zero_grad()
            nn.functional.cross_entropy(functional_call(model, adapted, (x[5:],)), y[5:]).backward()
            optimizer.step()
    return seen
