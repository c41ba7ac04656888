"""What a run with several tasks came to, and its certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.fast.heads_result import HeadsResult
from frostline.finetune.label_file import TaskData
from frostline.json_values import finite
from frostline.state import names
from frostline.state.inventory import SCHEMA_VERSION


@dataclass(frozen=True, eq=False)
class TasksResult:
    """What a run with several tasks came to.

    Attributes:
        folder: the run folder.
        tasks: name to its classes and samples.
        images: how many images were read.
        trained: what became of the heads, and the proof that they had nothing to do with each other.
        certificate: as written to ``certificate.json``.
        page: the HTML report, where the extra for it is installed.
        spent: what the time went to, name to seconds.
    """

    folder: Path
    tasks: Mapping[str, TaskData]
    images: int
    trained: HeadsResult
    certificate: dict[str, Any]
    page: Path | None
    spent: Mapping[str, float]

    @property
    def isolated(self) -> bool:
        """Whether nothing of the trunk moved, and no head moved another one."""
        return not self.certificate["moved"] and self.trained.isolation.isolated

    def to_json(self) -> dict[str, Any]:
        """The result as JSON-ready values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "folder": str(self.folder),
            "isolated": self.isolated,
            "images": self.images,
            "accuracy": {row.name: row.accuracy for row in self.trained.rows},
            "diverged": {row.name: row.diverged for row in self.trained.rows if row.diverged},
            "spent": dict(self.spent),
            "certificate": self.certificate,
            "report": None if self.page is None else str(self.page),
        }


def certify_tasks(
    rows: dict[str, dict[str, Any]], tasks: Mapping[str, TaskData], trained: HeadsResult
) -> dict[str, Any]:
    """The certificate as JSON-ready values: the trunk's digests before and after, and the heads' isolation.

    Args:
        rows: what was held of the trunk, from :func:`~frostline.state.held_rows.held_rows`.
        tasks: name to its classes and samples.
        trained: what became of the heads.
    """
    held = {names.join("trunk", path): row for path, row in rows.items()}
    return finite(
        {
            "schema_version": SCHEMA_VERSION,
            "held": held,
            "moved": [path for path, row in held.items() if not row["equal"]],
            "isolation": trained.isolation.to_json(),
            "tasks": {
                row.name: {
                    "classes": list(tasks[row.name].classes),
                    "train": len(tasks[row.name].train),
                    "val": len(tasks[row.name].val),
                    "largest_class": tasks[row.name].largest_class,
                    "accuracy": row.accuracy,
                    "val_loss": row.val_loss,
                    "loss": row.loss,
                    "epoch": row.epoch,
                    "epochs": row.epochs,
                    "best_epoch": row.best_epoch,
                    "stopped_early": row.stopped_early,
                    "diverged": row.diverged,
                }
                for row in trained.rows
            },
        }
    )
