"""M209: `from_pretrained` returns a model in eval mode, and it is trained so."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x):
        return self.body(x)

    @classmethod
    def from_pretrained(cls, weights: dict[str, torch.Tensor]) -> Classifier:
        model = cls()
        model.load_state_dict(weights)
        model.eval()  # <- M209
        return model


def fit(net: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    torch.manual_seed(0)
    weights = Classifier().state_dict()
    with fl.watch() as seen:
        net = Classifier.from_pretrained(weights)
        fit(net, steps)
    return seen


def twin(steps: int = 3):
    torch.manual_seed(0)
    weights = Classifier().state_dict()
    with fl.watch() as seen:
        net = Classifier.from_pretrained(weights)
        net.train()
        fit(net, steps)
    return seen
