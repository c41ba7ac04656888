"""M201: nobody calls `eval()` before validation."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def batch():
    return torch.randn(16, 4), torch.randint(3, (16,))


def failing(epochs: int = 2):
    with fl.watch() as seen:
        net = make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(epochs):
            net.train()
            for _ in range(2):
                x, y = batch()
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
            correct = 0
            with torch.no_grad():
                for _ in range(2):
                    x, y = batch()
                    correct += (net(x).argmax(1) == y).sum().item()  # <- M201
    return seen


def twin(epochs: int = 2):
    with fl.watch() as seen:
        net = make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(epochs):
            net.train()
            for _ in range(2):
                x, y = batch()
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
            correct = 0
            net.eval()
            with torch.no_grad():
                for _ in range(2):
                    x, y = batch()
                    correct += (net(x).argmax(1) == y).sum().item()
    return seen
