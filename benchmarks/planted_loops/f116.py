"""F116: Lightning's `BackboneFinetuning(train_bn=False)` freezes the backbone, and not its batch norms.

The callback is the real one; its trainer is left out, because it takes seconds to start.
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

import frostline as fl
from frostline.compat import import_torchvision


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.backbone(x))


def callback_of_lightning():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        from lightning.pytorch.callbacks import BackboneFinetuning
    return BackboneFinetuning


def train(model, optimizer, steps: int) -> None:
    model.train()
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 4):
    BackboneFinetuning = callback_of_lightning()  # noqa: N806
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        callback = BackboneFinetuning(unfreeze_backbone_at_epoch=10, train_bn=False)  # <- F116
        callback.freeze_before_training(model)
        optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=0.01)
        train(model, optimizer, steps)
    return seen


def default(steps: int = 4):
    BackboneFinetuning = callback_of_lightning()  # noqa: N806
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        callback = BackboneFinetuning(unfreeze_backbone_at_epoch=10)
        callback.freeze_before_training(model)
        optimizer = torch.optim.Adam(model.head.parameters(), lr=0.01)
        train(model, optimizer, steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        fl.freeze(model, "backbone")
        optimizer = torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=0.01)
        train(model, optimizer, steps)
    return seen
