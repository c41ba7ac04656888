"""N307: the normalization layers are put back into train mode for the test."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def fit(net: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.train()
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    with fl.watch() as seen:
        net = make()
        fit(net, steps)
        net.eval()
        for m in net.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.train()  # <- N307
        with torch.no_grad():
            for _ in range(2):
                net(torch.randn(16, 4)).argmax(1)
    return seen


def twin(steps: int = 3):
    with fl.watch() as seen:
        net = make()
        fit(net, steps)
        net.eval()
        with torch.no_grad():
            for _ in range(2):
                net(torch.randn(16, 4)).argmax(1)
    return seen
