"""F113: the embedding is frozen, and with it the output layer that shares its weight."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl
from frostline.audit import Contract


class Tagger(nn.Module):
    def __init__(self, *, tied: bool):
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 12)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.body(self.embed(ids)))


def train(model, optimizer, steps: int) -> None:
    model.train()
    for _ in range(steps):
        ids = torch.randint(12, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), ids).backward()
        optimizer.step()


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Tagger(tied=True)
        model.embed.requires_grad_(False)  # <- F113
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        train(model, optimizer, steps)
    return seen


def thawing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Tagger(tied=True)
        model.requires_grad_(False)
        model.head.requires_grad_(True)  # <- F113
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        train(model, optimizer, steps)
    return seen


def declared(steps: int = 4):
    torch.manual_seed(0)
    model = Tagger(tied=True)
    with fl.watch(model, contract=Contract(frozen=("embed",))) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Tagger(tied=False)
        model.embed.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        train(model, optimizer, steps)
    return seen
