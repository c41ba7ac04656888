"""What a run of several tasks on one trunk was asked to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.errors import name_some
from frostline.fast.head_task import makes_path
from frostline.finetune.config import ConfigError, FinetuneConfig

SCHEMA = "tasks-1"


@dataclass(frozen=True)
class TasksConfig:
    """The settings of one run with several tasks.

    Attributes:
        tasks: name to the CSV file of its labels.
        settings: the rest; its ``data`` is where images are looked for first.
        patience: stop a head after so many epochs without a better accuracy, and keep its best state.

    Raises:
        ConfigError: a setting has no effect here, or a task no name that a path can have.
    """

    tasks: Mapping[str, str]
    settings: FinetuneConfig
    patience: int | None = None

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("there is no task\n  fix: --task NAME=LABELS.csv")
        bad = [name for name in self.tasks if not makes_path(name)]
        if bad:
            raise ConfigError(
                f"--task: a head cannot be named {name_some([repr(name) for name in bad])}, for that makes no path\n"
                "  fix: a name without dots, and none that nn.ModuleDict uses itself, such as 'keys' or 'training'"
            )
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"--patience {self.patience}: too small.\n  fix: 1 or more")
        settings, default = self.settings, FinetuneConfig()
        for name, why in (
            ("strategy", "all heads train on the features of one trunk, so the trunk stays as it is"),
            ("freeze", "all of the trunk is held, for all heads train on its features"),
            ("lr_schedule", "heads train at a constant rate"),
            ("naive", "the naive loop trains one head"),
        ):
            if getattr(settings, name) not in {getattr(default, name), False}:
                raise ConfigError(f"--{name.replace('_', '-')} with --task: {why}.\n  fix: leave out one of them")

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON-ready values; its schema says that there is nothing to resume."""
        return {
            **self.settings.to_json(),
            "schema_version": SCHEMA,
            "tasks": dict(self.tasks),
            "patience": self.patience,
        }


def tasks_from(options: Sequence[str]) -> dict[str, str]:
    """Read ``NAME=LABELS.csv`` from the command line.

    Raises:
        ConfigError: one has no name, no file, or the name of another one.

    Example:
        >>> tasks_from(["kind=labels.csv", "sex=more/sex.csv"])
        {'kind': 'labels.csv', 'sex': 'more/sex.csv'}
    """
    tasks: dict[str, str] = {}
    for option in options:
        name, equals, file = (part.strip() for part in option.partition("="))
        if not equals or not name or not file:
            # One word is the file if it looks like one, and else the name.
            labels = file or (name if Path(name).suffix else "LABELS.csv")
            stem = (Path(labels).stem if file or Path(name).suffix else name) or "kind"
            raise ConfigError(f"--task {option}: a task has a name and a file\n  fix: --task {stem}={labels}")
        if name in tasks:
            raise ConfigError(
                f"--task {option}: there is a task {name!r} already, {tasks[name]}\n  fix: another name for one of them"
            )
        tasks[name] = file
    return tasks
