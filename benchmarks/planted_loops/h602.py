"""H602: a learned scale is read by `.item()`, and learns nothing."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.body(x) * self.scale.item()  # <- H602


class Learned(Fixed):
    def forward(self, x):
        return self.body(x) * self.scale


def train(model, optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Fixed()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen


def cut_off(steps: int = 4):
    """The other form of the mistake: a new tensor is made of the output, so that `backward` has somewhere to go."""
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            logits = torch.tensor(model(x).tolist(), requires_grad=True)
            nn.functional.cross_entropy(logits, y).backward()  # <- H602 cut off
            optimizer.step()
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Learned()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train(model, optimizer, steps)
    return seen
