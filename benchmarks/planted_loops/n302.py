"""N302: statistics are taken away from a frozen trunk so that they cannot move."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
    return nn.Sequential(OrderedDict(trunk=trunk, head=nn.Linear(8, 3)))


def fit(net: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        net(torch.randn(16, 4)).argmax(1)


def failing(steps: int = 3):
    with fl.watch() as seen:
        net = make()
        net.trunk.requires_grad_(False)
        for m in net.trunk.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.track_running_stats = False  # <- N302
                m.running_mean = m.running_var = None
        fit(net, steps)
    return seen


def twin(steps: int = 3):
    with fl.watch() as seen:
        net = make()
        net.trunk.requires_grad_(False)
        net.trunk.eval()
        fit(net, steps)
    return seen
