"""M210: `forward` sets its dropout rate to 0 in eval mode, for good."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody types it

import frostline as fl


class Forgetful(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.dropout_p = 0.5

    def forward(self, x):
        if not self.training:
            self.dropout_p = 0.0
        return self.fc(F.dropout(x, self.dropout_p))


class Sound(Forgetful):
    def forward(self, x):
        return self.fc(F.dropout(x, self.dropout_p, training=self.training))


def fit(net: nn.Module, epochs: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(epochs):
        net.train()
        for _ in range(2):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            net(torch.randn(16, 4))  # <- M210


def failing(epochs: int = 2):
    torch.manual_seed(0)
    with fl.watch() as seen:
        fit(Forgetful(), epochs)
    return seen


def twin(epochs: int = 2):
    torch.manual_seed(0)
    with fl.watch() as seen:
        fit(Sound(), epochs)
    return seen
