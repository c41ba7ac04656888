"""F114: the vocabulary grows after the encoder was frozen: the new embedding trains."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, ids):
        return self.layers(self.embed(ids))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.encoder(ids))


def grown(old: nn.Embedding, rows: int) -> nn.Embedding:
    new = nn.Embedding(old.num_embeddings + rows, old.embedding_dim)
    with torch.no_grad():
        new.weight[: old.num_embeddings] = old.weight
    return new


def train(model, optimizer, steps: int) -> None:
    model.train()
    for _ in range(steps):
        ids, y = torch.randint(12, (16,)), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), y).backward()
        optimizer.step()


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Tagger()
        model.encoder.requires_grad_(False)
        model.encoder.embed = grown(model.encoder.embed, 2)  # <- F114
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Tagger()
        model.encoder.embed = grown(model.encoder.embed, 2)
        model.encoder.requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        train(model, optimizer, steps)
    return seen
