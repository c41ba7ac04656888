"""N306: pictures in 0 to 255 go into a model that was trained on standardized ones."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def pretrained() -> nn.Sequential:
    """A small model that was trained on standardized pictures."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        for _ in range(60):
            net(torch.randn(4, 3, 12, 12))
    return net


def pictures() -> torch.Tensor:
    return torch.randint(256, (8, 3, 12, 12)).float()


def fit(net: nn.Module, scale, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(steps):
        x, y = scale(pictures()), torch.randint(3, (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()  # <- N306
        optimizer.step()


def failing(steps: int = 3):
    net = nn.Sequential(pretrained(), nn.Linear(8, 3))
    with fl.watch(net) as seen:
        fit(net, lambda x: x, steps)
    return seen


def twin(steps: int = 3):
    net = nn.Sequential(pretrained(), nn.Linear(8, 3))
    with fl.watch(net) as seen:
        fit(net, lambda x: (x - 127.5) / 73.9, steps)
    return seen
