"""A row of ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class EpochRow:
    """What one epoch gave.

    Attributes:
        phase: the name of the phase; the naive twin's ends in ``(naive)``.
        epoch: counted from 1.
        epochs: how many there will be.
        loss: the mean training loss.
        accuracy: of the trained head on the validation data, in 0..1.
        seconds: how long it took.
        rates: group to its learning rate at some steps of the epoch, evenly spaced; 0 while a group is held.
        spent: what the time was spent on, to seconds: ``loading``, ``prefix``, ``head``, and ``saving`` once the epoch
            is kept, which comes after ``seconds``. Empty in rows of older runs.
    """

    phase: str
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    seconds: float
    rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, "tuple[float, ...]"])
    spent: Mapping[str, float] = field(default_factory=dict[str, float])

    def to_json(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        return {**asdict(self), "rates": {group: list(values) for group, values in self.rates.items()}}
