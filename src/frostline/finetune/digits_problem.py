"""The embedded default: two heads on one trunk, on 1,797 real images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from frostline.finetune.config import FinetuneConfig
from frostline.finetune.digits import DigitsSplit, digits_data
from frostline.finetune.problem import Phase, Problem, held_part
from frostline.finetune.strategy import told_of_epochs
from frostline.state.inventory import inventory
from frostline.tasks.task_model import TaskModel

WIDTH = 256


def digits_problem(config: FinetuneConfig) -> Problem:
    """A small trunk learns the digit; then a second head learns the parity with trunk and first head held.

    The second head sees the same images as photographic negatives, dark ink on white paper, as a second scanner would
    give them. That is what second tasks are like: their pictures come from elsewhere, and batch norms that still learn
    forget what the first head was trained on.
    """
    data = digits_data(config.seed)
    model = _model(config.seed)
    trunk = held_part(model.trunk, config.freeze, config.strategy)
    notes = told_of_epochs(config.strategy, config.epochs)
    return Problem(
        title="Two heads on one trunk: handwritten digits",
        model=model,
        phases=(
            Phase("digit", config.epochs, config.lr, (), _plain(data.train, "digit"), _plain(data.val, "digit")),
            Phase(
                "parity",
                config.epochs,
                config.lr,
                trunk,
                _negative(data.train),
                _negative(data.val),
                config.strategy,
                about="learns even or odd on the negatives of the images, dark ink on white paper",
            ),
        ),
        probe=_plain(data.val, "digit"),
        probe_heads=("digit",),
        facts=(
            ("data", f"scikit-learn's handwritten digits, {len(data.train):,} to train, {len(data.val):,} to validate"),
            ("trunk", "3 convolutions with batch norm, dropout"),
            ("first head", "digit, ten classes, learns with the trunk"),
            ("second head", f"parity (even, odd) of the same images as negatives, strategy {config.strategy}"),
        ),
        warnings=notes,
        export=lambda trained: dict(inventory(trained).tensors),
        notes=notes,
        heads={
            "digit": ("heads.digit", tuple(map(str, range(10)))),
            "parity": ("heads.parity", ("even", "odd")),
        },
    )


def _model(seed: int) -> TaskModel:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers: dict[str, nn.Module] = {}
        for number, (before, after) in enumerate(((1, 16), (16, 32), (32, 64)), start=1):
            layers[f"conv{number}"] = nn.Conv2d(before, after, 3, padding=1, bias=False)
            layers[f"bn{number}"] = nn.BatchNorm2d(after)
            layers[f"relu{number}"] = nn.ReLU()
            if number == 2:
                layers["halve"] = nn.MaxPool2d(2)
        layers |= {"pool": nn.AdaptiveAvgPool2d(2), "flatten": nn.Flatten(), "dropout": nn.Dropout(0.3)}
        return TaskModel(
            nn.Sequential(OrderedDict(layers)), {"digit": nn.Linear(WIDTH, 10), "parity": nn.Linear(WIDTH, 2)}
        )


def _plain(split: DigitsSplit, task: str) -> Dataset[Any]:
    return split.dataset(task)


def _negative(split: DigitsSplit) -> Dataset[Any]:
    return TensorDataset(1 - split.images, split.labels["parity"])
