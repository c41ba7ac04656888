"""What tasks add to a meta-step, and what becomes of it: summed in their order, over threads and processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from frostline.errors import InnerLoopDiverged
from frostline.meta.normalizing import LayerStatistics

OnNonfinite = Literal["stop", "skip"]
Met = dict[str, LayerStatistics]
"""The statistics that one pass met, by path of the layer."""


@dataclass(frozen=True, eq=False)
class TaskGradient:
    """What one task adds to a meta-step.

    Attributes:
        loss: on the query set.
        correct: share of the queries that were right.
        grads: for each trained parameter; ``None`` where the loss does not depend on it.
        observed: the statistics that the passes met, the query pass last.
    """

    loss: float
    correct: float
    grads: list[Tensor | None]
    observed: list[Met]


@dataclass(frozen=True)
class MetaBatch:
    """What came of one meta-batch.

    Attributes:
        loss: on the query sets, averaged over the tasks that counted; NaN if none did.
        accuracy: likewise.
        losses: of each task that counted.
        skipped: places in the batch of tasks that were left out because something was not finite, with the reason.
    """

    loss: float
    accuracy: float
    losses: tuple[float, ...]
    skipped: dict[int, str] = field(default_factory=dict[int, str])


def what_is_not_finite(found: TaskGradient) -> str | None:
    """What of a task's loss and gradient is NaN or infinite; ``None`` where nothing is."""
    if not math.isfinite(found.loss):
        return f"a query loss of {found.loss}"
    finite = [grad.isfinite().all() for grad in found.grads if grad is not None]
    # Together, so that a GPU is waited for once.
    if finite and not torch.stack(finite).all():
        return f"a gradient that is not finite (query loss {found.loss:.4g})"
    return None


@dataclass(frozen=True, eq=False)
class Told:
    """What a process tells the others; gradients go another way."""

    losses: list[float]
    correct: list[float]
    observed: list[list[Met]]
    places: list[int]
    skipped: dict[int, str]
    has_grad: list[bool]


@dataclass(frozen=True, eq=False)
class GradientSum:
    """The sum of gradients over tasks."""

    grads: list[Tensor | None]
    losses: list[float]
    correct: list[float]
    observed: list[list[Met]]
    places: list[int]
    skipped: dict[int, str]

    @staticmethod
    def of(found: Iterator[TaskGradient | str], places: list[int], how: OnNonfinite) -> GradientSum:
        """Add up what comes of the tasks at these places of the meta-batch; a text says why one does not count."""
        grads: list[Tensor | None] = []
        kept: list[TaskGradient] = []
        at: list[int] = []
        skipped: dict[int, str] = {}
        for place, one in zip(places, found, strict=True):
            if isinstance(one, str):
                if how == "stop":
                    raise InnerLoopDiverged(
                        f"{one}\n  fix: look at the task; a smaller inner_lr, or on_nonfinite='skip' to leave such "
                        "tasks out"
                    )
                skipped[place] = one
                continue
            if not grads:
                grads = list(one.grads)
            else:
                grads = [b if a is None else a if b is None else a + b for a, b in zip(grads, one.grads, strict=True)]
            kept.append(TaskGradient(one.loss, one.correct, [], one.observed))
            at.append(place)
        losses, correct = [one.loss for one in kept], [one.correct for one in kept]
        return GradientSum(grads, losses, correct, [one.observed for one in kept], at, skipped)

    def told(self) -> Told:
        """What the other processes are told."""
        has_grad = [grad is not None for grad in self.grads]
        return Told(self.losses, self.correct, self.observed, self.places, self.skipped, has_grad)

    def united(self, told: list[Told], trained: list[nn.Parameter]) -> GradientSum:
        """The sum over all processes, in each of them."""
        grads: list[Tensor | None] = []
        for place, parameter in enumerate(trained):
            if not any(place < len(t.has_grad) and t.has_grad[place] for t in told):
                grads.append(None)
                continue
            own = self.grads[place] if self.grads else None
            total = torch.zeros_like(parameter) if own is None else own.clone()
            dist.all_reduce(total)
            grads.append(total)
        rows = sorted(((place, t, i) for t in told for i, place in enumerate(t.places)), key=lambda row: row[0])
        skipped = {place: text for t in told for place, text in t.skipped.items()}
        return GradientSum(
            grads,
            [t.losses[i] for _, t, i in rows],
            [t.correct[i] for _, t, i in rows],
            [t.observed[i] for _, t, i in rows],
            [place for place, _, _ in rows],
            dict(sorted(skipped.items())),
        )
