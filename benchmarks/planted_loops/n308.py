"""N308: a critic with spectral normalization scores samples before its first pass in train mode."""

from __future__ import annotations

import warnings

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older of torch's two spectral norms
        first = nn.utils.spectral_norm(nn.Linear(16, 32))
        last = nn.utils.spectral_norm(nn.Linear(32, 1))
    return nn.Sequential(first, nn.LeakyReLU(0.2), last)


def failing():
    with fl.watch() as seen:
        critic = make()
        critic.eval()
        with torch.no_grad():
            critic(torch.randn(8, 16))  # <- N308
    return seen


def twin():
    with fl.watch() as seen:
        critic = make()
        critic.train()
        with torch.no_grad():
            for _ in range(15):
                critic(torch.randn(8, 16))
        critic.eval()
        with torch.no_grad():
            critic(torch.randn(8, 16))
    return seen
