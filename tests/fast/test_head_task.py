"""What a head is to learn: what is taken, what is refused, and sweeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from frostline.errors import DataError, ModelError
from frostline.fast.head_task import HeadTask, check_names, makes_path, sweep


def test_targets_become_tensors_and_flags_become_classes():
    task = HeadTask([True, False], (0.5, 1.5), out_features=2, samples=range(2))
    assert task.targets.tolist() == [1, 0]
    assert task.targets.dtype is torch.int64
    assert task.val_targets.dtype is torch.float32
    assert task.samples.tolist() == [0, 1]
    assert replace(task, lr=0.1).targets.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({}, ModelError, "neither is given"),
        ({"out_features": 2, "head": nn.Linear(1, 2)}, ModelError, "both are given"),
        ({"out_features": 0}, ModelError, "out_features=0 is too small"),
        ({"out_features": 2, "epochs": 0}, ModelError, "epochs=0 is too small"),
        ({"out_features": 2, "batch_size": 0}, ModelError, "batch_size=0 is too small"),
        ({"out_features": 2, "patience": 0, "val_targets": [0, 1]}, ModelError, "patience=0 is too small"),
        ({"out_features": 2, "seed": -1}, ModelError, "seed=-1 is too small"),
        ({"out_features": 2, "seed": 2**64}, ModelError, "is too large"),
        ({"out_features": 2, "lr": 0.0}, ModelError, "lr=0.0 cannot be used\n  fix: a number, above 0"),
        ({"out_features": 2, "lr": float("nan")}, ModelError, "lr=nan"),
        ({"out_features": 2, "weight_decay": -1.0}, ModelError, "weight_decay=-1.0 cannot be used"),
        ({"out_features": 2, "patience": 3}, DataError, "has nothing to judge by"),
        ({"out_features": 2, "targets": []}, DataError, "targets is empty"),
        ({"out_features": 2, "targets": ["ant", "bee"]}, DataError, "cannot be read as numbers"),
        ({"out_features": 2, "samples": [0]}, DataError, "2 targets for 1 samples"),
        ({"out_features": 2, "samples": [True, False]}, DataError, r"for a mask, mask\.nonzero"),
        ({"out_features": 2, "val_samples": [0]}, DataError, "val_samples without val_targets"),
    ],
)
def test_what_makes_no_task_is_refused(given: dict[str, Any], error: type[Exception], said: str):
    with pytest.raises(error, match=said):
        HeadTask(**{"targets": [0, 1], **given})


def test_a_sweep_names_its_values_exactly_and_without_dots():
    task = HeadTask([0, 1], out_features=2, epochs=3)
    rates = (1e-3, 0.00123456789, 1.0, 10.0, 2.5e-7)
    tasks = sweep(task, lr=rates)
    assert list(tasks) == ["lr=1e-3", "lr=123456789e-11", "lr=1", "lr=1e1", "lr=25e-8"]
    assert [float(name.removeprefix("lr=")) for name in tasks] == list(rates)
    assert [each.lr for each in tasks.values()] == list(rates)
    assert all(each.epochs == 3 and each.weight_decay == task.weight_decay for each in tasks.values())
    check_names(tasks)
    assert list(sweep(task, weight_decay=(0, 0.1))) == ["wd=0", "wd=1e-1"]


def test_a_sweep_over_nothing_or_over_one_value_twice_is_refused():
    task = HeadTask([0, 1], out_features=2)
    with pytest.raises(ModelError, match="nothing to sweep over"):
        sweep(task)
    with pytest.raises(ModelError, match="a value of lr occurs twice"):
        sweep(task, lr=(0.1, 1e-1))


@pytest.mark.parametrize("name", ["", " ", "a.b", "keys", "training", "a\nb"])
def test_names_that_make_no_path(name: str):
    assert not makes_path(name)
    with pytest.raises(ModelError, match="cannot be named"):
        check_names({name: HeadTask([0, 1], out_features=2)})
