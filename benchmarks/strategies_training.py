"""One fine-tuning run: a strategy as groups, holds and a schedule of the library, and the loop that all share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from strategies_start import Net, Task, accuracy, batches
from torch import Generator
from torch.nn import functional

import frostline as fl

WEIGHT_DECAY = 0.01
# What the trunk trains at, as a part of the head's rate, where the two differ; and the factor from layer to layer.
TRUNK_SHARE, LAYER_DECAY = 0.1, 0.7
TRUNK = ("stem", "blocks")


@dataclass(frozen=True)
class Plan:
    """What all runs have in common.

    Attributes:
        epochs: how many.
        batch: images a step.
        width: of the net.
        start: the file that the trunk comes from.
    """

    epochs: int
    batch: int
    width: int
    start: Path

    def steps(self, task: Task) -> int:
        """Steps of an epoch."""
        full, rest = divmod(len(task.train), self.batch)
        return full + (rest > 1)


@dataclass(frozen=True)
class Prepared:
    """A model that is about to be trained."""

    optimizer: torch.optim.Optimizer
    unfreezing: fl.optim.Unfreezing | None = None
    hold: fl.freezing.Hold | None = None


@dataclass(frozen=True)
class Run:
    """What came of one run.

    Attributes:
        task: its name.
        strategy: its name.
        seed: of the head's first values, the order of the batches, the augmentation and the split.
        rate: of the head.
        curve: accuracy on the images to judge by, after each epoch.
        seconds: wall time of the training steps, evaluation left out.
        cpu_seconds: processor time of the same.
        moved: the share of the trunk's numbers, running statistics included, that are not what they were, to the bit.
        distance: how far its parameters went, as a part of their norm.
        trained: the share of the trunk's parameters that trained in the last epoch.
    """

    task: str
    strategy: str
    seed: int
    rate: float
    curve: list[float]
    seconds: float
    cpu_seconds: float
    moved: float
    distance: float
    trained: float
    best: float = field(init=False)
    last: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "best", max(self.curve))
        object.__setattr__(self, "last", self.curve[-1])


# Strategies ---------------------------------------------------------------------------------------------------------


def _everything(model: Net, rate: float, _plan: Plan, _steps: int) -> Prepared:
    return Prepared(torch.optim.AdamW(fl.optim.param_groups(model, rate, weight_decay=WEIGHT_DECAY)))


def _head(model: Net, rate: float, _plan: Plan, _steps: int) -> Prepared:
    optimizer = torch.optim.AdamW(fl.optim.param_groups(model, rate, weight_decay=WEIGHT_DECAY))
    return Prepared(optimizer, hold=fl.freeze(model, *TRUNK, level="state", optimizer=optimizer))


def _discriminative(model: Net, rate: float, _plan: Plan, _steps: int) -> Prepared:
    groups = fl.optim.param_groups(
        model, rate * TRUNK_SHARE, head_lr=rate, layer_decay=LAYER_DECAY, weight_decay=WEIGHT_DECAY
    )
    return Prepared(torch.optim.AdamW(groups))


def _gradual(model: Net, rate: float, plan: Plan, steps: int) -> Prepared:
    """A layer more after each tenth of the epochs, warmed up over one epoch; all of them from the middle on."""
    # Each layer has groups of its own at one rate, so that each can be warmed up.
    optimizer = torch.optim.AdamW(fl.optim.param_groups(model, rate, layer_decay=1.0, weight_decay=WEIGHT_DECAY))
    schedule = fl.optim.gradual(model, every=fl.optim.Epoch(max(1, plan.epochs // 10)), warmup=steps)
    return Prepared(optimizer, fl.optim.Unfreezing(schedule, model, optimizer))


def _probe_then_tune(model: Net, rate: float, plan: Plan, steps: int) -> Prepared:
    """The head alone for a quarter of the epochs; then the trunk too, warmed up over one epoch."""
    groups = fl.optim.param_groups(model, rate * TRUNK_SHARE, head_lr=rate, weight_decay=WEIGHT_DECAY)
    optimizer = torch.optim.AdamW(groups)
    schedule = fl.optim.probe_then_tune(model, at=fl.optim.Epoch(max(1, plan.epochs // 4)), warmup=steps)
    return Prepared(optimizer, fl.optim.Unfreezing(schedule, model, optimizer))


STRATEGIES: dict[str, Callable[[Net, float, Plan, int], Prepared]] = {
    "head": _head,
    "full": _everything,
    "discriminative": _discriminative,
    "gradual": _gradual,
    "probe-then-tune": _probe_then_tune,
    "scratch": _everything,
}


# The loop -----------------------------------------------------------------------------------------------------------


def fine_tune(strategy: str, task: Task, seed: int, rate: float, plan: Plan) -> Run:
    """Train one model. For one seed, every strategy sees the same head, batches and augmentation."""
    torch.manual_seed(seed)
    model = Net(task.classes, plan.width)
    if strategy != "scratch":
        fl.plan_load(model, plan.start, keep="head").apply()
    before = model.trunk_state()
    steps = plan.steps(task)
    prepared = STRATEGIES[strategy](model, rate, plan, steps)
    optimizer, unfreezing = prepared.optimizer, prepared.unfreezing
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * plan.epochs)
    generator = Generator().manual_seed(seed)
    curve: list[float] = []
    seconds = cpu_seconds = 0.0
    model.train()
    for _ in range(plan.epochs):
        clock, cpu = time.perf_counter(), time.process_time()
        for pixels, labels in batches(task.train, plan.batch, generator):
            optimizer.zero_grad()
            functional.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
            scheduler.step()
        trained = _trained(model)
        if unfreezing is not None:
            unfreezing.epoch_end()
        seconds += time.perf_counter() - clock
        cpu_seconds += time.process_time() - cpu
        curve.append(accuracy(model, task.val))
    fl.optim.check_groups(model, optimizer).raise_if_wrong()
    if prepared.hold is not None:
        prepared.hold.verify()
    moved, distance = _way(model, before)
    return Run(task.name, strategy, seed, rate, curve, seconds, cpu_seconds, moved, distance, trained)


def _trained(model: Net) -> float:
    trunk = [parameter for name, parameter in model.named_parameters() if not name.startswith("head.")]
    return sum(p.numel() for p in trunk if p.requires_grad) / sum(p.numel() for p in trunk)


def _way(model: Net, before: dict[str, torch.Tensor]) -> tuple[float, float]:
    """The share of the trunk's numbers that moved, and how far its parameters went."""
    after = model.trunk_state()
    moved = sum(int((after[name] != value).sum()) for name, value in before.items())
    names = [name for name, _ in model.named_parameters() if name in before]
    way = math.sqrt(sum(float((after[name] - before[name]).double().square().sum()) for name in names))
    norm = math.sqrt(sum(float(before[name].double().square().sum()) for name in names))
    return moved / sum(value.numel() for value in before.values()), way / norm
