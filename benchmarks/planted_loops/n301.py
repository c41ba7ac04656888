"""N301: the layers are asked for by `nn.BatchNorm2d`; the trunk has a `BatchNorm1d` too."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU()
    )
    return nn.Sequential(OrderedDict(trunk=trunk, head=nn.Linear(8, 3)))


def fit(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(8, 1, 6, 6), torch.randint(3, (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    with fl.watch() as seen:
        net = make()
        for p in net.trunk.parameters():
            p.requires_grad = False
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
        net.train()
        for m in net.trunk.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.eval()  # <- N301
        fit(net, optimizer, steps)
    return seen


def twin(steps: int = 3):
    with fl.watch() as seen:
        net = make()
        for p in net.trunk.parameters():
            p.requires_grad = False
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
        net.train()
        for m in net.trunk.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.eval()
        fit(net, optimizer, steps)
    return seen
