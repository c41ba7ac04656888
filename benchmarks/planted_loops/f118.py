"""F118: a checkpointed block behind a frozen embedding gets no gradient."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        x = self.embed(ids)
        x = checkpoint(self.block, x, use_reentrant=True)  # <- F118
        return self.head(x)


class SoundNet(Net):
    def forward(self, ids):
        x = self.embed(ids)
        x = checkpoint(self.block, x, use_reentrant=False)
        return self.head(x)


def train(model, steps: int) -> None:
    model.embed.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for _ in range(steps):
        ids, y = torch.randint(10, (16,)), torch.randint(3, (16,))
        optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logits = model(ids)
        nn.functional.cross_entropy(logits, y).backward()
        optimizer.step()


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        train(Net(), steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        train(SoundNet(), steps)
    return seen
