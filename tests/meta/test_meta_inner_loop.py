"""Inner steps that are computed again: for models of many kinds the same to the bit, in memory that stays small."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import frostline as fl
from frostline.meta.maml import MAML
from frostline.meta.networks import conv4
from frostline.meta.task import Examples, Task


def images(count: int, *shape: int) -> list[Task]:
    generator = torch.Generator().manual_seed(0)

    def examples(each: int) -> Examples:
        return Examples(torch.randn(3 * each, *shape, generator=generator), torch.arange(3).repeat_interleave(each))

    return [Task(examples(2), examples(4), way=3, seed=place) for place in range(count)]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.second(torch.tanh(self.first(x)))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


def _spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 6)), nn.BatchNorm1d(6), nn.Linear(6, 3))


def _weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6)), nn.SiLU(), nn.Dropout(0.2), nn.Linear(6, 3))


def _held() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    fl.freeze(net, "1")
    return net


def _blocks() -> nn.Module:
    return conv4(3, width=16, size=16)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "blocks": (_blocks, (1, 16, 16)),
    "tied": (Tied, (6,)),
    "recurrent": (Recurrent, (4, 6)),
    "spectral norm": (_spectral, (6,)),
    "weight norm": (_weight_norm, (6,)),
    "held": (_held, (6,)),
}


def run(name: str, **settings: Any) -> tuple[list[Tensor], dict[str, Tensor]]:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learner = MAML(model, inner_lr=0.1, steps=3, **settings)
    learner.backward(images(2, *shape), threads=1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return [p.grad for p in learner.parameters() if p.grad is not None], learner.statistics.tensors()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{}, {"learn_rates": "layer_step"}, {"inner_optimizer": "adam"}], ids=str)
def test_steps_that_are_computed_again_give_the_same_to_the_bit(name: str, settings: dict[str, Any]):
    (grads, kept), (again, kept_again) = (run(name, checkpoint_steps=how, **settings) for how in (False, True))
    assert grads
    assert len(grads) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    assert all(torch.equal(value, kept_again[key]) for key, value in kept.items())


def test_a_part_that_is_adapted_gives_the_same_to_the_bit():
    (grads, _), (again, _) = (run("tied", adapt="head", checkpoint_steps=how) for how in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


class Live(TorchDispatchMode):
    """Bytes of all storages that operators have made and that are alive, whatever the allocator does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for value in tree_leaves(out):
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            if storage._cdata in self._alive or storage._cdata in given:
                continue
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _gone(self, place: int, size: int) -> None:
        self._alive.discard(place)
        self.now -= size


def live_peak(count: int, **settings: Any) -> int:
    torch.manual_seed(0)
    learner = MAML(conv4(3, width=16), inner_lr=0.1, steps=settings.pop("steps", 3), **settings)
    batch = images(count, 1, 28, 28)
    with Live() as live:
        learner.backward(batch, threads=1)
    return live.peak


def test_memory_does_not_grow_with_the_number_of_tasks():
    one, many = live_peak(1), live_peak(6)
    # The sum of gradients, one task's gradient and the statistics of each task: no graph.
    parameters = sum(p.numel() * 4 for p in conv4(3, width=16).parameters())
    assert many < one + 3 * parameters


def test_memory_hardly_grows_with_the_number_of_steps_when_they_are_computed_again():
    few, many = (live_peak(1, steps=n) for n in (2, 10))
    few_again, many_again = (live_peak(1, steps=n, checkpoint_steps=True) for n in (2, 10))
    assert many > 2 * few, "the twin: without it, memory grows"
    # What stays of a step is its weights.
    parameters = sum(p.numel() * 4 for p in conv4(3, width=16).parameters())
    assert many_again < few_again + 9 * parameters
