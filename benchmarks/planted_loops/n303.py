"""N303: a batch norm written by hand, with `training=True`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody types it

import frostline as fl


class Norm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=True)  # <- N303


class SoundNorm(Norm):
    def forward(self, x):
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=self.training)


def fit(norm: nn.Module, steps: int) -> None:
    net = nn.Sequential(nn.Linear(4, 8), norm, nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        net(torch.randn(16, 4)).argmax(1)


def failing(steps: int = 3):
    torch.manual_seed(0)
    with fl.watch() as seen:
        fit(Norm(8), steps)
    return seen


def twin(steps: int = 3):
    torch.manual_seed(0)
    with fl.watch() as seen:
        fit(SoundNorm(8), steps)
    return seen
