"""O412: groups by name, the trunk slow and the classifier fast; the stem's name is in neither list."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.layer2(self.layer1(self.conv1(x))).mean((2, 3)))


def train(model, optimizer, scheduler, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(4, 3, 8, 8), torch.randint(3, (4,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        scheduler.step()


def failing(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        trunk = [p for name, p in model.named_parameters() if name.startswith("layer")]
        optimizer = torch.optim.SGD(  # <- O412
            [{"params": trunk}, {"params": model.fc.parameters(), "lr": 0.1}], lr=0.01, momentum=0.9
        )
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
        train(model, optimizer, scheduler, steps)
    return seen


def twin(steps: int = 4):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Net()
        trunk = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
        optimizer = torch.optim.SGD(
            [{"params": trunk}, {"params": model.fc.parameters(), "lr": 0.1}], lr=0.01, momentum=0.9
        )
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.1)
        train(model, optimizer, scheduler, steps)
    return seen
