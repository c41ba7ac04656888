"""A small net with a head, and its state to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import ModelError


class Net(nn.Module):
    """A trunk, a head, and an attribute that says how many classes there are."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.num_classes = classes
        self.stem = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.neck = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.fc = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.neck(self.norm(self.stem(x)).mean((2, 3))))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return Net()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Everything:
    """The identity of every module and parameter of a model, its state, and all of an optimizer."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.model, self.optimizer = model, optimizer
        self.snapshot = fl.snapshot(model)
        self.seen = self._look()

    def _look(self) -> list[Any]:
        modules = list(self.model.named_modules(remove_duplicate=False))
        tensors = [(path, id(p), id(p.grad)) for path, p in self.model.named_parameters(remove_duplicate=False)]
        plain = [(p, k, v) for p, m in modules for k, v in vars(m).items() if isinstance(v, (int, str, float))]
        seen: list[Any] = [[(path, id(m)) for path, m in modules], tensors, plain]
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                seen.append([id(p) for p in group["params"]])
                seen.append({k: v for k, v in group.items() if k != "params"})
            for parameter, state in self.optimizer.state.items():
                seen.append([id(parameter), *((k, v.clone() if torch.is_tensor(v) else v) for k, v in state.items())])
        return seen

    def __str__(self) -> str:
        return str(self.seen)

    def is_as_it_was(self) -> bool:
        return not self.snapshot.diff(self.model) and str(self._look()) == str(self)


@pytest.fixture
def everything() -> type[Everything]:
    return Everything


@pytest.fixture
def train():
    def run(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, steps: int = 2) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    return run


@pytest.fixture
def refused(everything):
    """The message of what refuses, after which everything is as it was."""

    def message(call, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> str:
        before = everything(model, optimizer)
        with pytest.raises(ModelError) as caught:
            call()
        assert before.is_as_it_was()
        assert caught.value.exit_code == 2
        return str(caught.value)

    return message
