"""M207: a frozen encoder that goes on dropping."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.1), nn.Linear(8, 8), nn.Dropout(0.1))
    return nn.Sequential(OrderedDict(encoder=encoder, head=nn.Linear(8, 3)))


def fit(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    with fl.watch() as seen:
        net = make()
        for p in net.encoder.parameters():
            p.requires_grad = False
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
        net.train()  # <- M207
        fit(net, optimizer, steps)
    return seen


def twin(steps: int = 3):
    with fl.watch() as seen:
        net = make()
        optimizer = torch.optim.SGD(net.head.parameters(), lr=0.1)
        fl.freeze(net, "encoder", optimizer=optimizer)
        net.train()
        fit(net, optimizer, steps)
    return seen
