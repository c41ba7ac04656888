"""The metric that a plateau looks at, in what the Trainer keeps of its evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def metric_in(metrics: Mapping[str, Any] | None, name: str | None) -> float | None:
    """A metric by its name, with or without the Trainer's ``eval_``; ``None`` where it is not there.

    Example:
        >>> metric_in({"eval_accuracy": 0.5}, "accuracy")
        0.5
    """
    if not metrics or name is None:
        return None
    found = metrics.get(name, metrics.get(f"eval_{name}"))
    return None if found is None else float(found)


def latest(history: Sequence[Mapping[str, Any]], name: str | None, epoch: int) -> float | None:
    """The last value of a metric within an epoch, from ``state.log_history``.

    Args:
        history: of the Trainer's state.
        name: of the metric, as in :func:`metric_in`.
        epoch: how many epochs had ended before it.

    Example:
        >>> history = [{"epoch": 1.0, "eval_loss": 2.0}, {"epoch": 1.5, "eval_loss": 1.0}, {"epoch": 2.0, "loss": 3.0}]
        >>> latest(history, "eval_loss", 1), latest(history, "eval_loss", 2)
        (1.0, None)
    """
    for row in reversed(history):
        value = metric_in(row, name)
        if value is not None and epoch < row.get("epoch", 0) <= epoch + 1:
            return value
    return None
