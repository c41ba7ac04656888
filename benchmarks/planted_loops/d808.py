"""D808: the model is compiled without the guards that notice a new `requires_grad`, and the trunk is unfrozen later."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


def make() -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    torch.compiler.reset()
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 2):
    model, optimizer = make()
    with fl.watch(model, optimizer) as seen:
        fast = torch.compile(
            model, backend="aot_eager", options={"guard_filter_fn": torch.compiler.skip_all_guards_unsafe}
        )
        train(fast, optimizer, steps)
        model[0].requires_grad_(True)  # <- D808
        train(fast, optimizer, steps)
    return seen


def twin(steps: int = 2):
    model, optimizer = make()
    with fl.watch(model, optimizer) as seen:
        fast = torch.compile(model, backend="aot_eager")
        train(fast, optimizer, steps)
        model[0].requires_grad_(True)
        train(fast, optimizer, steps)
    return seen
