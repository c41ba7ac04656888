"""M208: the teacher of a distillation is never put into eval mode."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def distil(student: nn.Module, teacher: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(steps):
        x = torch.randn(16, 4)
        with torch.no_grad():
            target = teacher(x).softmax(1)  # <- M208
        optimizer.zero_grad()
        nn.functional.cross_entropy(student(x), target).backward()
        optimizer.step()


def failing(steps: int = 3):
    torch.manual_seed(0)
    with fl.watch() as seen:
        student, teacher = make(8), make(16)
        distil(student, teacher, steps)
    return seen


def twin(steps: int = 3):
    torch.manual_seed(0)
    with fl.watch() as seen:
        student, teacher = make(8), make(16)
        teacher.eval()
        distil(student, teacher, steps)
    return seen
