"""What a run tells while it goes on, and writes as rows of ``metrics.jsonl``; the run knows no terminal."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

VALIDATE = "validate"


@dataclass(frozen=True)
class IterationRow:
    """What one meta-batch gave.

    Attributes:
        iteration: counted from 1.
        mode: the statistics policy that was trained with.
        loss: on the query sets, averaged over the tasks that counted; ``None`` if none did.
        accuracy: likewise, in 0..1.
        seconds: how long it took.
        skipped: tasks that were left out because something was not finite.
    """

    iteration: int
    mode: str
    loss: float | None
    accuracy: float | None
    seconds: float
    skipped: int

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ValidationRow:
    """What a validation between iterations gave, under the policy of training.

    Attributes:
        iteration: how many were done before.
        policy: the statistics policy.
        accuracy: on tasks of the validation split, in 0..1; ``None`` if no task was finished.
        interval: half the width of its 95 % interval.
        tasks: that counted.
        skipped: tasks on which adapting blew up.
        seconds: how long it took.
        mode: always ``validate``.
    """

    iteration: int
    policy: str
    accuracy: float | None
    interval: float | None
    tasks: int
    skipped: int
    seconds: float
    mode: str = VALIDATE

    def to_json(self) -> dict[str, Any]:
        """The row as JSON values."""
        return asdict(self)


class Progress(Protocol):
    """Told by the run, shown by whoever likes."""

    def say(self, line: str) -> None:
        """A sentence about what happens now."""
        ...

    def begin(self, iterations: int, done: int) -> None:
        """Training begins, or goes on after ``done`` iterations."""
        ...

    def iteration(self, row: IterationRow) -> None:
        """A step of the outer optimizer was taken."""
        ...

    def validated(self, row: ValidationRow) -> None:
        """A validation was made."""
        ...


class Silent:
    """Tells nobody."""

    def say(self, line: str) -> None:
        """Nothing."""

    def begin(self, iterations: int, done: int) -> None:
        """Nothing."""

    def iteration(self, row: IterationRow) -> None:
        """Nothing."""

    def validated(self, row: ValidationRow) -> None:
        """Nothing."""


def known(value: float) -> float | None:
    """A number, or nothing where it is NaN or infinite.

    Example:
        >>> known(0.5), known(float("nan"))
        (0.5, None)
    """
    return value if math.isfinite(value) else None
