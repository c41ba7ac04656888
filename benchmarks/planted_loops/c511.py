"""C511: the adapter is merged for speed while validating, and the model is saved like that."""

from __future__ import annotations

import io

import torch
from torch import nn

import frostline as fl


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) * 0.1)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.merged = False

    def delta(self) -> torch.Tensor:
        return self.lora_b.detach() @ self.lora_a.detach()

    def merge(self) -> None:
        if not self.merged:
            self.base.weight.data += self.delta()
            self.merged = True

    def unmerge(self) -> None:
        if self.merged:
            self.base.weight.data -= self.delta()
            self.merged = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base(x)
        return out if self.merged else out + x @ self.lora_a.T @ self.lora_b.T


def train(steps: int) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(LoRALinear(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def validate(model: nn.Module) -> float:
    model.eval()
    x, y = torch.randn(16, 4), torch.randint(3, (16,))
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(x), y))


def failing(steps: int = 3):
    with fl.watch() as seen:
        model = train(steps)
        model[0].merge()
        validate(model)
        torch.save(model.state_dict(), io.BytesIO())  # <- C511
    return seen


def twin(steps: int = 3):
    with fl.watch() as seen:
        model = train(steps)
        validate(model)
        torch.save(model.state_dict(), io.BytesIO())
    return seen
