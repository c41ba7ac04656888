"""F119: weights are clipped in all parameters, those of the held trunk too."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.trunk(x))


def loss_of(model):
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    return nn.functional.cross_entropy(model(x), y)


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch(every=1) as seen:
        model = Net()
        fl.freeze(model, "trunk")
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        model.train()
        for i in range(steps):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            for p in model.parameters():
                p.data.clamp_(-0.3 + 0.05 * i, 0.3 - 0.05 * i)  # <- F119
    return seen


def inferred(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(0.99)
    return seen


def by_numpy(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        fl.freeze(model, "trunk")
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            weight = model.trunk[0].weight.detach().numpy()
            weight *= 0.99
    return seen


def average(steps: int = 4):
    """A teacher that follows its student: frozen, written by hand, and meant to be."""
    torch.manual_seed(0)
    with fl.watch() as seen:
        student, teacher = Net(), Net()
        teacher.requires_grad_(False)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        for _ in range(steps):
            x = torch.randn(16, 4)
            with torch.no_grad():
                target = teacher(x)
            optimizer.zero_grad()
            (student(x) - target).square().mean().backward()
            optimizer.step()
            with torch.no_grad():
                for mine, its in zip(teacher.parameters(), student.parameters(), strict=True):
                    mine.lerp_(its, 0.1)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch(every=1) as seen:
        model = Net()
        fl.freeze(model, "trunk")
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        model.train()
        for i in range(steps):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
            for p in model.parameters():
                if p.requires_grad:
                    p.data.clamp_(-0.3 + 0.05 * i, 0.3 - 0.05 * i)
    return seen
