"""One phase of training through accelerate: the same code on one process or several."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Sampler, TensorDataset

from frostline.errors import DataError, ModelError, TrainingDiverged
from frostline.extras import require
from frostline.finetune.alone import moving
from frostline.finetune.config import FinetuneConfig
from frostline.finetune.metrics import EpochRow
from frostline.finetune.problem import Phase
from frostline.finetune.progress import Progress
from frostline.finetune.shares import Shares
from frostline.finetune.shortcut import Shortcut, whole_model
from frostline.finetune.strategy import groups_for, rate_factor, unfreezing_for
from frostline.freezing import rewrap, wrap
from frostline.norms import merge_statistics
from frostline.optim.unfreezing import Unfreezing
from frostline.runs.device import pick_device
from frostline.runs.seeds import drops_last, mix_seed, order_of
from frostline.runs.time_spent import TimeSpent
from frostline.runs.training_state import unpack_optimizer
from frostline.state.names import name_folded
from frostline.tasks.task_model import TaskModel

Packed = tuple[Mapping[str, Tensor], Mapping[str, str]]
# How many of an epoch's rates are kept for the report.
_RATES_KEPT = 8


class EpochSampler(Sampler[int]):
    """A new order every epoch that depends on (seed, epoch) alone, so that a run that resumes sees the same.

    Example:
        >>> sampler = EpochSampler(4, seed=0)
        >>> first = list(sampler)
        >>> sampler.set_epoch(1)
        >>> sorted(first) == sorted(sampler), first == list(sampler)
        (True, False)
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Give the order of this epoch from now on."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(order_of(self.size, self.seed, self.epoch).tolist())


def make_accelerator(config: FinetuneConfig) -> Any:
    """The accelerator for the device that was asked for.

    The batch size counts all processes together, so that the same command means the same on one process and on four.

    Raises:
        ModelError: there is no such device here, or the batch cannot be split over the processes.
    """
    accelerate: Any = require("accelerate", extra="train", purpose="Training")
    device = pick_device(config.device)
    if ":" in config.device:
        torch.cuda.set_device(device)
    loading = require("accelerate.utils", extra="train", purpose="Training").DataLoaderConfiguration(split_batches=True)
    # Mixed precision wraps the model's forward when training begins: the logits after would be of another precision
    # than those before, which a proof to the bit cannot have.
    accelerator = accelerate.Accelerator(cpu=config.device == "cpu", mixed_precision="no", dataloader_config=loading)
    processes: int = accelerator.num_processes
    if config.batch_size % processes:
        even = max(1, config.batch_size // processes) * processes
        raise ModelError(
            f"--batch-size {config.batch_size} cannot be split evenly over {processes} processes.\n"
            f"  fix: --batch-size {even}"
        )
    return accelerator


def fit(
    accelerator: Any,
    model: TaskModel,
    phase: Phase,
    config: FinetuneConfig,
    progress: Progress,
    *,
    name: str,
    number: int,
    done: int = 0,
    packed: Packed | None = None,
    shortcut: Shortcut | None = None,
    after_epoch: Callable[[EpochRow, Optimizer, str], None] | None = None,
    about: Sequence[str] = (),
) -> None:
    """Train the head of one phase; what is held, is held by the caller.

    Args:
        accelerator: from :func:`make_accelerator`, or :class:`~frostline.finetune.alone.Alone`.
        model: the trunk with its heads; moved to the device and left in train mode.
        phase: what to train on.
        config: batch size, seed, workers.
        progress: told of every step.
        name: what the phase is called in ``metrics.jsonl``.
        number: which phase it is; part of the seed.
        done: how many epochs were done before.
        packed: the optimizer's state after them, and under ``unfreezing`` that of the schedule.
        shortcut: how to get from samples to logits; by default by the whole model.
        after_epoch: called on every process with the row of the epoch, the optimizer and the schedule's state as JSON.
        about: lines that are said before the first epoch.

    Raises:
        TrainingDiverged: the loss is not finite, and the model is as that step found it; or the logits on the
            validation data are not, before ``after_epoch`` is called.
        RanksDiffer: processes do not hold the same.
    """
    inner = torch.optim.AdamW(groups_for(model, phase.task, phase.strategy, phase.lr), lr=phase.lr)
    shortcut = shortcut or whole_model(phase, config)
    train, val = _loaders(shortcut, config, accelerator)
    # The data loader draws a seed for its workers when it is iterated: from here on, everything depends on the seed.
    several: bool = accelerator.num_processes > 1
    shares: Shares = train.batch_sampler
    train = moving(train, accelerator.device)
    # Before the model is wrapped: what the schedule holds back is nothing that a wrapper should wait for.
    schedule = _schedule(model, phase, inner, len(train))
    if packed is not None:
        unpack_optimizer(inner, *packed)
        if schedule is not None:
            schedule.load_state_dict(json.loads(packed[1]["unfreezing"]))
    if several:
        optimizer, val = accelerator.prepare(inner, val)
        wrapped: Any = wrap(model.to(accelerator.device), **_device_of(accelerator))
    else:
        wrapped, optimizer, val = accelerator.prepare(model, inner, val)
    progress.begin(name, phase.epochs, done)
    for line in about:
        progress.say(f"  {line}")
    with schedule or nullcontext():
        for epoch in range(done + 1, phase.epochs + 1):
            started, spent = time.perf_counter(), TimeSpent()
            spent.begin("head")
            torch.manual_seed(mix_seed(config.seed, number, epoch, accelerator.process_index))
            # The sampler, wherever accelerate has put it; and the dataset, whose augmentation depends on the epoch.
            train.set_epoch(epoch)
            shortcut.set_epoch(epoch)
            wrapped.train()
            total, samples = 0.0, 0
            rates: dict[str, list[float]] = {}
            for step, (inputs, labels) in enumerate(spent.waits("loading", train), start=1):
                set_rates(inner, config.lr_schedule, (epoch - 1) * len(train) + step - 1, phase.epochs * len(train))
                if (step - 1) % max(1, len(train) // _RATES_KEPT) == 0:
                    note_rates(rates, inner, schedule)
                optimizer.zero_grad()
                features = _features(shortcut, inputs, spent)
                logits = shortcut.logits(wrapped, features, phase.task)
                loss = torch.nn.functional.cross_entropy(logits, labels)
                if several:
                    loss = loss * shares.weight(step - 1)
                value = float(accelerator.reduce(loss.detach(), reduction="mean"))
                if not _finite(value):
                    raise TrainingDiverged(
                        f"the loss became {value} in phase {name!r}, epoch {epoch}, step {step}; "
                        "training was stopped.\n"
                        f"  fix: a smaller learning rate than --lr {config.lr:g}, or look for broken values in the data"
                    )
                accelerator.backward(loss)
                optimizer.step()
                count = shares.count(step - 1)
                total, samples = total + value * count, samples + count
                progress.step(name, epoch, step, len(train), value)
            if several:
                # Each process has the statistics of its own part of the data; what is held is left alone.
                merge_statistics(model)
            # Before anything is kept: a last step of an epoch can break the weights behind a loss that was finite.
            accuracy = _accuracy(accelerator, wrapped, spent.waits("loading", val), phase.task, shortcut, spent)
            if accuracy is None:
                raise TrainingDiverged(
                    f"the logits became nan or infinite on the validation data, in phase {name!r}, "
                    f"after epoch {epoch}; training was stopped.\n"
                    f"  fix: a smaller learning rate than --lr {config.lr:g}"
                )
            spent.end()
            row = EpochRow(
                phase=name,
                epoch=epoch,
                epochs=phase.epochs,
                loss=total / samples,
                accuracy=accuracy,
                seconds=time.perf_counter() - started,
                rates={group: tuple(values) for group, values in rates.items()},
                spent=spent.to_json(),
            )
            progress.epoch(row)
            if schedule is not None:
                unfrozen: list[str] = []
                turn = partial(_turn, schedule, accuracy, unfrozen)
                # A wrapper exchanges the gradients of what trained when it was made.
                wrapped = rewrap(wrapped, turn) if several else turn() or wrapped
                # What comes after the last epoch does not train any more.
                if unfrozen and epoch < phase.epochs:
                    progress.say(f"  unfrozen: {name_folded(unfrozen)}")
            if after_epoch is not None:
                after_epoch(row, inner, "" if schedule is None else json.dumps(schedule.state_dict()))
    accelerator.free_memory()


def set_rates(optimizer: Optimizer, schedule: str, step: int, steps: int) -> None:
    """Give every group the rate of a step: computed from where it began, so that it needs no state of its own."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rate_factor(schedule, step, steps)


def note_rates(rates: dict[str, list[float]], optimizer: Optimizer, schedule: Unfreezing | None) -> None:
    """Add each group's rate at this step to those noted before."""
    for group in optimizer.param_groups:
        factor = 1.0 if schedule is None else schedule.factor_of(group)
        rates.setdefault(group["name"], []).append(float(group["lr"]) * factor)


def _schedule(model: TaskModel, phase: Phase, optimizer: Optimizer, steps: int) -> Unfreezing | None:
    unfreeze = unfreezing_for(model, phase.strategy, phase.epochs, steps)
    return None if unfreeze is None else Unfreezing(unfreeze, model, optimizer)


def _turn(schedule: Unfreezing, accuracy: float, unfrozen: list[str]) -> None:
    """End an epoch of the schedule, and note what it unfreezes."""
    unfrozen += schedule.epoch_end(accuracy)


def _device_of(accelerator: Any) -> dict[str, Any]:
    device: torch.device = accelerator.device
    return {"device_ids": [device.index or 0]} if device.type == "cuda" else {}


@torch.no_grad()
def _accuracy(
    accelerator: Any, wrapped: Any, loader: Any, task: str, shortcut: Shortcut, spent: TimeSpent
) -> float | None:
    """The share of right answers on all validation data, each sample counted once; nothing if a logit is not finite."""
    wrapped.eval()
    right = count = broken = 0
    for inputs, labels in loader:
        features = _features(shortcut, inputs, spent)
        logits = shortcut.logits(wrapped, features, task)
        chosen = torch.where(logits.isfinite().all(-1), logits.argmax(-1), -1)
        predicted, true = accelerator.gather_for_metrics((chosen, labels))
        right += int((predicted == true).sum())
        broken += int((predicted == -1).sum())
        count += len(true)
    return None if broken else right / count


def _features(shortcut: Shortcut, inputs: Any, spent: TimeSpent) -> Any:
    if shortcut.prefix is None or shortcut.cached:
        return inputs
    with spent("prefix"):
        return shortcut.prefix(inputs)


def _loaders(shortcut: Shortcut, config: FinetuneConfig, accelerator: Any) -> tuple[Any, Any]:
    sized: Any = shortcut.train
    size = len(sized)
    if size < 2:
        raise DataError(f"only {size} sample to train on.\n  fix: more images")
    common: dict[str, Any] = {
        "num_workers": 0 if shortcut.cached or isinstance(shortcut.train, TensorDataset) else config.workers,
        "pin_memory": accelerator.device.type == "cuda",
    }
    shares = Shares(
        EpochSampler(size, config.seed),
        config.batch_size,
        drop_last=drops_last(size, config.batch_size),
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    train: DataLoader[Any] = DataLoader(shortcut.train, batch_sampler=shares, **common)
    val: DataLoader[Any] = DataLoader(shortcut.val, batch_size=config.batch_size, shuffle=False, **common)
    return train, val


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
