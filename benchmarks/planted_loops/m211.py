"""M211: a schedule-free optimizer that nobody puts into eval mode."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class ScheduleFreeSGD(torch.optim.Optimizer):
    """Trains at y, keeps an average x, and has x in the model in eval mode (Defazio et al. 2024, arXiv:2405.15682)."""

    def __init__(self, params, lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "train_mode": True, "k": 0})

    def _swap(self, train: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == train:
                continue
            group["train_mode"] = train
            weight = 1 - group["beta"] if train else 1 - 1 / group["beta"]
            for p in group["params"]:
                if "z" in self.state[p]:
                    p.data.lerp_(self.state[p]["z"], weight)

    def train(self) -> None:
        self._swap(True)

    def eval(self) -> None:
        self._swap(False)

    @torch.no_grad()
    def step(self, closure=None):  # noqa: ARG002 - torch asks for it
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone())
                p.lerp_(z, 1 / group["k"])
                p.add_(p.grad, alpha=group["lr"] * (group["beta"] * (1 - 1 / group["k"]) - 1))
                z.sub_(p.grad, alpha=group["lr"])


def failing(epochs: int = 2):
    torch.manual_seed(0)
    with fl.watch() as seen:
        net = nn.Linear(4, 3)
        optimizer = ScheduleFreeSGD(net.parameters())
        for _ in range(epochs):
            net.train()
            for _ in range(2):
                x, y = torch.randn(16, 4), torch.randint(3, (16,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                net(torch.randn(16, 4)).argmax(1)  # <- M211
    return seen


def twin(epochs: int = 2):
    torch.manual_seed(0)
    with fl.watch() as seen:
        net = nn.Linear(4, 3)
        optimizer = ScheduleFreeSGD(net.parameters())
        for _ in range(epochs):
            net.train()
            optimizer.train()
            for _ in range(2):
                x, y = torch.randn(16, 4), torch.randint(3, (16,))
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
            net.eval()
            optimizer.eval()
            with torch.no_grad():
                net(torch.randn(16, 4)).argmax(1)
    return seen
