"""What became of heads that trained side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from frostline.fast.head_run import HeadEpoch, HeadRun
from frostline.fast.heads_isolation import HeadsIsolation
from frostline.json_values import finite
from frostline.state.inventory import SCHEMA_VERSION
from frostline.tables import html_table, text_table


@dataclass(frozen=True)
class HeadRow:
    """What became of one head.

    Attributes:
        name: its name.
        accuracy: on the validation samples, in 0..1; ``None`` where there are none, or no classes.
        loss: the mean training loss.
        val_loss: the mean loss on the validation samples.
        epoch: the epoch whose state the head has, and whose figures these are; 0 if it diverged in the first.
        best_epoch: the epoch of the best validation.
        epochs: how many it went through.
        stopped_early: whether its patience ran out before its last epoch.
        diverged: when and how it diverged; empty if it did not.
        lr: its rate.
        weight_decay: its decay.
        seconds: what its own steps and validation took.
    """

    name: str
    accuracy: float | None
    loss: float | None
    val_loss: float | None
    epoch: int
    best_epoch: int | None
    epochs: int
    stopped_early: bool
    diverged: str
    lr: float
    weight_decay: float
    seconds: float


@dataclass(frozen=True, eq=False)
class HeadsResult:
    """What training heads side by side came to.

    Attributes:
        rows: one for each head.
        heads: name to the trained module, in eval mode.
        isolation: the proof that none moved another one or the trunk.
        epochs: one row for each head and epoch, in the order in which they ended.
        feature_seconds: what computing the features took; 0 where they were given.
        seconds: what the training took.
    """

    rows: tuple[HeadRow, ...]
    heads: Mapping[str, nn.Module]
    isolation: HeadsIsolation
    epochs: tuple[HeadEpoch, ...]
    feature_seconds: float
    seconds: float

    @property
    def diverged(self) -> tuple[str, ...]:
        """The heads that diverged."""
        return tuple(row.name for row in self.rows if row.diverged)

    @property
    def best(self) -> HeadRow | None:
        """The head with the best accuracy, or the least validation loss where there are no accuracies."""
        known = [row for row in self.rows if not row.diverged and row.val_loss is not None]
        return max(known, key=_merit, default=None)

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready values with a schema version; the heads themselves are left out."""
        return finite(
            {
                "schema_version": SCHEMA_VERSION,
                "rows": [asdict(row) for row in self.rows],
                "epochs": [asdict(row) for row in self.epochs],
                "isolation": self.isolation.to_json(),
                "feature_seconds": self.feature_seconds,
                "seconds": self.seconds,
            }
        )

    def __str__(self) -> str:
        said = [f"{row.name!r} diverged: {row.diverged}" for row in self.rows if row.diverged]
        return "\n".join([text_table(_COLUMNS, self._cells()), *said, str(self.isolation).splitlines()[0]])

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._cells(), caption=str(self.isolation).splitlines()[0])

    def _cells(self) -> list[list[object]]:
        return [
            [
                row.name,
                None if row.accuracy is None else f"{row.accuracy:.2%}",
                row.loss,
                row.val_loss,
                row.best_epoch,
                row.epochs,
                "diverged" if row.diverged else "stopped early" if row.stopped_early else "all epochs",
                row.seconds,
            ]
            for row in self.rows
        ]


_COLUMNS = ["head", "accuracy", "loss", "val loss", "best epoch", "epochs", "ended", "seconds"]


def row_of(run: HeadRun) -> HeadRow:
    """What became of a head whose training has ended."""
    # The state that the head has: with patience its best, otherwise its last.
    last = run.rows[-1] if run.rows else None
    kept = run.best if run.task.patience is not None and run.best is not None else last
    return HeadRow(
        name=run.name,
        accuracy=None if kept is None else kept.accuracy,
        loss=None if kept is None else kept.loss,
        val_loss=None if kept is None else kept.val_loss,
        epoch=0 if kept is None else kept.epoch,
        best_epoch=None if run.best is None else run.best.epoch,
        epochs=len(run.rows),
        stopped_early=run.stopped_early,
        diverged=run.diverged,
        lr=run.task.lr,
        weight_decay=run.task.weight_decay,
        seconds=run.seconds,
    )


def _merit(row: HeadRow) -> tuple[float, float]:
    return (-1.0 if row.accuracy is None else row.accuracy), -(row.val_loss or 0.0)
