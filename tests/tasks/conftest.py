"""A trunk with the state that drifts, two heads, and random batches for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from frostline.tasks import TaskModel


@pytest.fixture(autouse=True)
def _seeded_on_one_thread() -> Iterator[None]:
    """One thread, because on a busy machine two spend their time waiting for each other."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def two_heads() -> TaskModel:
    trunk = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 5))
    return TaskModel(trunk, {"old": nn.Linear(5, 3), "new": nn.Linear(5, 2)})


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """Far from what a fresh batch norm expects, so that one that learns would move much."""
    return [(torch.randn(16, 6) * 3 + 2, torch.randint(0, 2, (16,))) for _ in range(4)]


@pytest.fixture
def state_of() -> Callable[[nn.Module], dict[str, object]]:
    """All of a module's state by plain torch, in a form that compares by bytes; no code of ours."""

    def state(module: nn.Module) -> dict[str, object]:
        found: dict[str, object] = {f"{path}.training": m.training for path, m in module.named_modules()}
        for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
            found[path] = tensor.detach().numpy().tobytes()
        found |= {f"{path}.requires_grad": p.requires_grad for path, p in module.named_parameters()}
        return found

    return state
