"""C510: the model comes from the meta device, the checkpoint brings the trunk, the head keeps what was in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

import frostline as fl


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def trunk() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {key: value for key, value in make().state_dict().items() if key.startswith("0.")}


@contextmanager
def filled_memory() -> Iterator[None]:
    """Memory that was never written holds NaN, as torch fills it for runs that have to be the same twice."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def failing(steps: int = 3):
    state = trunk()
    with filled_memory(), torch.device("meta"):
        model = make()
    with filled_memory(), fl.watch() as seen:
        model.to_empty(device="cpu")
        model.load_state_dict(state, strict=False)  # <- C510
        train(model, steps)
    return seen


def twin(steps: int = 3):
    state = trunk()
    with filled_memory(), torch.device("meta"):
        model = make()
    with filled_memory(), fl.watch() as seen:
        model.to_empty(device="cpu")
        model[2].reset_parameters()
        model.load_state_dict(state, strict=False)
        train(model, steps)
    return seen
