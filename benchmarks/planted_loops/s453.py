"""S453: a run is resumed from model and optimizer; the scheduler begins from its beginning."""

from __future__ import annotations

import io

import torch
from torch import nn

import frostline as fl


def make():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.3**epoch)


def train(model, optimizer, scheduler, epochs: int) -> None:
    for _ in range(epochs):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()


def first_run() -> io.BytesIO:
    torch.manual_seed(0)
    model, optimizer, scheduler = make()
    train(model, optimizer, scheduler, 3)
    file = io.BytesIO()
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(states, file)
    file.seek(0)
    return file


def failing(epochs: int = 3):
    file = first_run()
    with fl.watch() as seen:
        model, optimizer, scheduler = make()
        checkpoint = torch.load(file)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])  # <- S453
        train(model, optimizer, scheduler, epochs)
    return seen


def twin(epochs: int = 3):
    file = first_run()
    with fl.watch() as seen:
        model, optimizer, scheduler = make()
        checkpoint = torch.load(file)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
        train(model, optimizer, scheduler, epochs)
    return seen
