"""O409: sentences of different lengths, a mean over the tokens of each micro-batch, and the same factor for all."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def batches(count: int):
    """Micro-batches of four sentences, padded to the longest; the padding is no target."""
    torch.manual_seed(0)
    for i in range(count):
        length = (4, 12, 6, 10)[i % 4]
        words, targets = torch.randint(20, (4, length)), torch.randint(20, (4, length))
        targets[:, length - 2 :] = -100
        yield words, targets


def failing(steps: int = 3, k: int = 4):
    with fl.watch() as seen:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i, (words, targets) in enumerate(batches(steps * k)):
            loss = nn.functional.cross_entropy(model(words).flatten(0, 1), targets.flatten(), ignore_index=-100)
            (loss / k).backward()  # <- O409
            if (i + 1) % k == 0:
                optimizer.step()
                optimizer.zero_grad()
    return seen


def twin(steps: int = 3, k: int = 4):
    with fl.watch() as seen:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = list(batches(steps * k))
        for first in range(0, len(data), k):
            window = data[first : first + k]
            tokens = sum(int((targets != -100).sum()) for _, targets in window)
            for words, targets in window:
                logits = model(words).flatten(0, 1)
                loss = nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum")
                (loss / tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
    return seen
