"""M206: a constant `dropout_p` in attention."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - as everybody types it

import frostline as fl


class Attention(nn.Module):
    def __init__(self, width: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)  # <- M206
        return self.out(x)


class CarefulAttention(Attention):
    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out(x)


def fit(attention: nn.Module, steps: int) -> None:
    net = nn.Sequential(nn.Linear(4, 8), attention, nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.train()
    for _ in range(steps):
        x, y = torch.randn(4, 1, 6, 4), torch.randn(4, 1, 6, 1)
        optimizer.zero_grad()
        F.mse_loss(net(x), y).backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        net(torch.randn(4, 1, 6, 4))


def failing(steps: int = 3):
    torch.manual_seed(0)
    with fl.watch() as seen:
        fit(Attention(), steps)
    return seen


def twin(steps: int = 3):
    torch.manual_seed(0)
    with fl.watch() as seen:
        fit(CarefulAttention(), steps)
    return seen
