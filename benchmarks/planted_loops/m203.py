"""M203: the trunk is frozen and put into eval mode once; `net.train()` at the start of each epoch undoes it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8))
    return nn.Sequential(OrderedDict(trunk=trunk, head=nn.Linear(8, 3)))


def train_epoch(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def failing(epochs: int = 2):
    with fl.watch() as seen:
        net = make()
        net.trunk.requires_grad_(False)
        net.trunk.eval()
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
        for _ in range(epochs):
            net.train()  # <- M203
            train_epoch(net, optimizer)
    return seen


def twin(epochs: int = 2):
    with fl.watch() as seen:
        net = make()
        net.trunk.requires_grad_(False)
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
        for _ in range(epochs):
            net.train()
            net.trunk.eval()
            train_epoch(net, optimizer)
    return seen
