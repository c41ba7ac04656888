"""A checkpoint gives back all of the state: model and optimizer go on as if they had never stopped."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.errors import CorruptCheckpoint
from frostline.runs.run_folder import RunFolder
from frostline.runs.training_state import pack, unpack_model, unpack_optimizer


class Mixed(nn.Module):
    """Tied weights, a buffer that a state_dict leaves out, a strided parameter, several dtypes, an empty tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.narrow = nn.Parameter(torch.randn(4).bfloat16())
        self.strided = nn.Parameter(torch.randn(3, 4).t())
        self.register_buffer("seen", torch.zeros(4), persistent=False)
        self.register_buffer("odd", torch.tensor([float("nan"), -0.0, float("inf")]))
        self.register_buffer("empty", torch.empty(0, 3, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.detach().mean(0)
        return self.second(self.norm(self.first(x))) * self.narrow.float() @ self.strided


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.8, 0.95)),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=0.01),
}


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Sums depend on how many threads share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def train(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=generator)).square().mean().backward()
        optimizer.step()


def bits(model: nn.Module) -> dict[str, bytes]:
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    return {name: t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for name, t in tensors}


def through_a_file(packed: tuple[Any, Any], place: Path) -> tuple[Any, Any]:
    RunFolder.create(place).write_json("config.json", {})
    RunFolder(place).save_checkpoint("a", *packed)
    found = RunFolder.open(place).checkpoint("a")
    return found.tensors, found.metadata


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_to_the_bit(kind: str, tmp_path: Path):
    model = Mixed()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, seed=1)
    tensors, metadata = through_a_file(pack(model, optimizer), tmp_path / "run")
    at_the_stop = bits(model)
    train(model, optimizer, seed=2)

    fresh = Mixed()
    fresh_optimizer = OPTIMIZERS[kind](fresh.parameters())
    unpack_model(fresh, tensors)
    unpack_optimizer(fresh_optimizer, tensors, metadata)
    assert bits(fresh) == at_the_stop
    train(fresh, fresh_optimizer, seed=2)
    assert bits(fresh) == bits(model)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_optimizers_state_is_the_same_value_by_value(kind: str, tmp_path: Path):
    model = Mixed()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, seed=1)
    tensors, metadata = through_a_file(pack(model, optimizer), tmp_path / "run")
    fresh = OPTIMIZERS[kind](Mixed().parameters())
    unpack_optimizer(fresh, tensors, metadata)
    was, now = optimizer.state_dict(), fresh.state_dict()
    assert json.dumps(was["param_groups"]) == json.dumps(now["param_groups"])
    assert was["state"].keys() == now["state"].keys()
    for index, entries in was["state"].items():
        for name, value in entries.items():
            again = now["state"][index][name]
            if isinstance(value, Tensor):
                assert (value.dtype, value.shape) == (again.dtype, again.shape)
                assert torch.equal(value, again)
            else:
                assert value == again


def test_buffers_that_a_state_dict_leaves_out_are_packed():
    """A naive checkpoint loses them, and the run that resumes goes on from zero."""
    model = Mixed()
    model(torch.ones(2, 4))
    assert "seen" not in model.state_dict()
    tensors, metadata = pack(model, None)
    assert metadata == {}
    fresh = Mixed()
    unpack_model(fresh, tensors)
    assert torch.equal(fresh.seen, torch.ones(4))


def test_tied_tensors_stay_tied_and_parameters_stay_the_same_objects():
    tensors, _ = pack(Mixed(), None)
    assert {"model/first.weight", "model/second.weight"} <= tensors.keys()
    fresh = Mixed()
    before = {name: id(p) for name, p in fresh.named_parameters()}
    unpack_model(fresh, tensors)
    assert fresh.first.weight is fresh.second.weight
    assert {name: id(p) for name, p in fresh.named_parameters()} == before


def test_packing_changes_nothing():
    model = Mixed()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    train(model, optimizer, seed=1)
    before, described = bits(model), copy.deepcopy(optimizer.state_dict())
    pack(model, optimizer)
    assert bits(model) == before
    assert str(optimizer.state_dict()) == str(described)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda t: t.pop("model/norm.running_mean"), "norm.running_mean"),
        (lambda t: t.update({"model/extra": torch.zeros(1)}), "extra"),
        (lambda t: t.update({"model/narrow": torch.zeros(5).bfloat16()}), "narrow"),
        (lambda t: t.update({"model/narrow": torch.zeros(4)}), "narrow"),  # copying would cast it without a word
    ],
    ids=["missing", "unexpected", "of another shape", "of another dtype"],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_written(damage: Callable[[Any], object], named: str):
    tensors, _ = pack(Mixed(), None)
    damage(tensors)
    fresh = Mixed()
    before = bits(fresh)
    with pytest.raises(CorruptCheckpoint, match=f"differ in {named}") as caught:
        unpack_model(fresh, tensors)
    assert caught.value.exit_code == 3
    assert bits(fresh) == before
