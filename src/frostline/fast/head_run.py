"""One head while it trains: its steps, its validation, its early stopping.

It holds all that its training depends on, so that it comes out the same whatever trains beside it.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from frostline.errors import DataError, ModelError
from frostline.fast.features import Features
from frostline.fast.head_optimizer import HeadOptimizer
from frostline.fast.head_task import HeadTask
from frostline.heads.initial import new_head

# What cross-entropy does not count.
_PASSED_OVER = -100


@dataclass(frozen=True)
class HeadEpoch:
    """What one epoch of one head gave.

    Attributes:
        head: its name.
        epoch: counted from 1.
        epochs: how many there will be at most.
        loss: the mean training loss.
        val_loss: the mean loss on the validation samples, where there are any.
        accuracy: the share of right answers there, in 0..1, where targets are classes.
        seconds: what the head's own steps and validation took.
    """

    head: str
    epoch: int
    epochs: int
    loss: float
    val_loss: float | None
    accuracy: float | None
    seconds: float


class HeadRun:
    """One head that trains.

    Args:
        name: what it is called in messages.
        task: what it learns.
        example: features of a sample or more, on the device on which it trains.

    Raises:
        ModelError: the head does not take these features, or there is nothing in it to train.
        DataError: a target is no class of the head.

    Attributes:
        module: the head; a copy of what the task gave.
        seconds: what its own work took so far.
        stopped_early: whether its patience ran out.
        diverged: when and how it diverged; empty if it did not.
        best: the epoch of the best validation; ``None`` without validation.
    """

    def __init__(self, name: str, task: HeadTask, example: Features) -> None:
        self.name = name
        self.task = task
        self.seconds = 0.0
        self.stopped_early = False
        self.diverged = ""
        self.best: HeadEpoch | None = None
        self.rows: list[HeadEpoch] = []
        self._device = device = example[0].device
        self.module = self._build(example).to(device)
        outputs = self._try(example)
        parameters = [each for each in self.module.parameters() if each.requires_grad]
        if not parameters:
            raise ModelError(f"the head {name!r} has nothing that trains\n  fix: a head with trainable parameters")
        self._optimizer = HeadOptimizer(parameters, task.lr, task.weight_decay)
        self._targets = torch.as_tensor(task.targets).to(device)
        self._val_targets = None if task.val_targets is None else torch.as_tensor(task.val_targets).to(device)
        self._tells_classes = outputs.ndim == 2 and _are_classes(self._val_targets)
        self._check_classes(outputs)
        self._best_state: dict[str, Tensor] = {}
        self._ordered, self._sum, self._count = self._targets, 0.0, 0
        self._val_sum, self._right, self._val_count = 0.0, 0, 0

    @property
    def active(self) -> bool:
        """Whether it goes on."""
        return not self.stopped_early and not self.diverged and len(self.rows) < self.task.epochs

    def begin_epoch(self, order: Tensor) -> None:
        """Take the order in which this epoch goes through the samples."""
        self._ordered = self._targets.index_select(0, order.to(self._targets.device))
        self._sum, self._count = 0.0, 0
        self.module.train()

    def step(self, features: Features, start: int, seed: int) -> None:
        """Take one step; if the loss is not finite, stop as the step found it.

        Args:
            features: of the samples from ``start`` on in the order of this epoch.
            start: see above.
            seed: of what the head draws.
        """
        began = time.perf_counter()
        self._seed(seed)
        count = features[0].shape[0]
        targets = self._ordered[start : start + count]
        loss = self.task.loss(self.module(*features), targets)
        value = loss.item()
        if math.isfinite(value):
            loss.backward()
            self._optimizer.step()
            self._sum, self._count = self._sum + value * count, self._count + count
        else:
            number = start // self.task.batch_size + 1
            self.diverged = f"the loss became {value} in epoch {len(self.rows) + 1}, step {number}"
        self.seconds += time.perf_counter() - began

    def begin_validation(self) -> None:
        """Get ready for :meth:`validate`."""
        self._val_sum, self._right, self._val_count = 0.0, 0, 0
        self.module.eval()

    @torch.no_grad()
    def validate(self, features: Features, start: int) -> None:
        """Judge the head by the validation samples from ``start`` on."""
        assert self._val_targets is not None, "only heads with targets for it are validated"
        began = time.perf_counter()
        self._seed(self.task.seed)
        count = features[0].shape[0]
        targets = self._val_targets[start : start + count]
        outputs = self.module(*features)
        self._val_sum += self.task.loss(outputs, targets).item() * count
        self._val_count += count
        if self._tells_classes:
            self._right += int((outputs.argmax(-1) == targets).sum())
        if not math.isfinite(self._val_sum) or not bool(outputs.isfinite().all()):
            self.diverged = (
                f"the outputs became nan or infinite on the validation data after epoch {len(self.rows) + 1}"
            )
        self.seconds += time.perf_counter() - began

    def end_epoch(self) -> HeadEpoch | None:
        """Note what the epoch gave, and stop if patience has run out. Nothing is noted of a head that diverged."""
        if self.diverged:
            return None
        validated = self._val_count > 0
        row = HeadEpoch(
            head=self.name,
            epoch=len(self.rows) + 1,
            epochs=self.task.epochs,
            loss=self._sum / self._count,
            val_loss=self._val_sum / self._val_count if validated else None,
            accuracy=self._right / self._val_count if validated and self._tells_classes else None,
            seconds=self.seconds - sum(each.seconds for each in self.rows),
        )
        self.rows.append(row)
        if validated:
            self._keep_best(row)
        return row

    def finish(self) -> None:
        """Leave the head in eval mode, and in its best state where there is patience."""
        self.module.eval()
        if not self._best_state:
            return
        state = _state(self.module)
        with torch.no_grad():
            for path, value in self._best_state.items():
                state[path].copy_(value)

    def _keep_best(self, row: HeadEpoch) -> None:
        if self.best is None or _score(row) > _score(self.best):
            self.best = row
            if self.task.patience is not None:
                self._best_state = {path: each.detach().clone() for path, each in _state(self.module).items()}
        elif self.task.patience is not None and row.epoch - self.best.epoch >= self.task.patience:
            self.stopped_early = row.epoch < self.task.epochs

    def _seed(self, seed: int) -> None:
        # `torch.manual_seed` takes longer than a step: it asks every kind of accelerator.
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _build(self, example: Features) -> nn.Module:
        task = self.task
        if task.head is not None:
            return copy.deepcopy(task.head)
        assert task.out_features is not None, "a task has one of the two"
        if len(example) != 1 or example[0].ndim != 2 or not example[0].is_floating_point():
            shapes = ", ".join(str(tuple(each.shape[1:])) for each in example)
            raise ModelError(
                f"the head {self.name!r}: a new nn.Linear takes one vector a sample, and the features are of shape "
                f"{shapes}\n  fix: head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(...)), for maps"
            )
        like = nn.utils.skip_init(nn.Linear, example[0].shape[1], task.out_features, dtype=example[0].dtype)
        assert isinstance(like, nn.Linear), "what was asked for"
        return new_head(like, task.out_features, torch.Generator().manual_seed(task.seed))

    def _try(self, example: Features) -> Tensor:
        """The outputs of a copy, because a first run may change buffers."""
        probe = copy.deepcopy(self.module).eval()
        try:
            with torch.no_grad():
                outputs: object = probe(*example)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            shapes = ", ".join(str(tuple(each.shape)) for each in example)
            raise ModelError(
                f"the head {self.name!r} does not take features of shape {shapes}\n"
                f"  found: {(str(error).splitlines() or [type(error).__name__])[0]}\n"
                "  fix: a head whose input is as wide as the features"
            ) from error
        if not isinstance(outputs, Tensor):
            raise ModelError(
                f"the head {self.name!r} gives a {type(outputs).__name__}\n  fix: a head that gives one tensor"
            )
        return outputs

    def _check_classes(self, outputs: Tensor) -> None:
        if self.task.loss is not nn.functional.cross_entropy or outputs.ndim != 2:
            return
        for what, targets in (("targets", self._targets), ("val_targets", self._val_targets)):
            if targets is None or not _are_classes(targets):
                continue
            # The loss passes over what has the number -100.
            outside = targets[((targets < 0) & (targets != _PASSED_OVER)) | (targets >= outputs.shape[1])]
            if len(outside):
                raise DataError(
                    f"the head {self.name!r} tells {outputs.shape[1]} classes apart, and among its {what} is "
                    f"{int(outside[0])}\n  fix: classes from 0 on, and out_features={int(targets.max()) + 1}"
                )


def _are_classes(targets: Tensor | None) -> bool:
    return targets is not None and targets.ndim == 1 and not targets.is_floating_point()


def _score(row: HeadEpoch) -> float:
    if row.accuracy is not None:
        return row.accuracy
    assert row.val_loss is not None, "only validated epochs have a score"
    return -row.val_loss


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
