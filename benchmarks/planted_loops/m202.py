"""M202: `train()` is called once, before the epochs; after the first validation nobody calls it again."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def train_epoch(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(net: nn.Module) -> float:
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    return (net(x).argmax(1) == y).float().mean().item()


def failing(epochs: int = 2):
    with fl.watch() as seen:
        net = make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        net.train()
        for _ in range(epochs):
            train_epoch(net, optimizer)
            net.eval()  # <- M202
            accuracy(net)
    return seen


def twin(epochs: int = 2):
    with fl.watch() as seen:
        net = make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(epochs):
            net.train()
            train_epoch(net, optimizer)
            net.eval()
            accuracy(net)
    return seen
