"""C507: the adapter's checkpoint is made by a filter on names, and the head that trained too is not called so."""

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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


def train(steps: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(LoRALinear(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def failing(steps: int = 3):
    with fl.watch() as seen:
        model = train(steps)
        adapter = {name: p for name, p in model.named_parameters() if "lora_" in name}
        torch.save(adapter, io.BytesIO())  # <- C507
    return seen


def twin(steps: int = 3):
    with fl.watch() as seen:
        model = train(steps)
        adapter = {name: p for name, p in model.named_parameters() if p.requires_grad}
        torch.save(adapter, io.BytesIO())
    return seen
