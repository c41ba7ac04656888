"""What a run tells while it goes on; the job knows no terminal."""

from __future__ import annotations

from typing import Protocol

from frostline.finetune.metrics import EpochRow


class Progress(Protocol):
    """Told by the job, shown by whoever likes."""

    def say(self, line: str) -> None:
        """A sentence about what happens now."""
        ...

    def features(self, done: int, total: int) -> None:
        """So many of the features to compute are computed."""
        ...

    def begin(self, phase: str, epochs: int, done: int) -> None:
        """A phase begins, or goes on after ``done`` epochs."""
        ...

    def step(self, phase: str, epoch: int, done: int, steps: int, loss: float) -> None:
        """A step of an epoch was taken."""
        ...

    def epoch(self, row: EpochRow) -> None:
        """An epoch is over."""
        ...


class Silent:
    """Tells nobody."""

    def say(self, line: str) -> None:
        """Nothing."""

    def features(self, done: int, total: int) -> None:
        """Nothing."""

    def begin(self, phase: str, epochs: int, done: int) -> None:
        """Nothing."""

    def step(self, phase: str, epoch: int, done: int, steps: int, loss: float) -> None:
        """Nothing."""

    def epoch(self, row: EpochRow) -> None:
        """Nothing."""
