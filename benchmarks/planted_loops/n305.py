"""N305: an exponential moving average over `parameters()`, which are not all of a model."""

from __future__ import annotations

import copy

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()


def failing(steps: int = 4):
    with fl.watch() as seen:
        net = make()
        ema = copy.deepcopy(net).eval()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(steps):
            step(net, optimizer)
            with torch.no_grad():
                for a, p in zip(ema.parameters(), net.parameters(), strict=True):
                    a.lerp_(p, 0.1)
                ema(torch.randn(16, 4)).argmax(1)  # <- N305
    return seen


def twin(steps: int = 4):
    with fl.watch() as seen:
        net = make()
        ema = copy.deepcopy(net).eval()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(steps):
            step(net, optimizer)
            with torch.no_grad():
                for a, p in zip(ema.parameters(), net.parameters(), strict=True):
                    a.lerp_(p, 0.1)
                for a, b in zip(ema.buffers(), net.buffers(), strict=True):
                    a.copy_(b)
                ema(torch.randn(16, 4)).argmax(1)
    return seen
