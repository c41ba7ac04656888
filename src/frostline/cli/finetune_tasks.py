"""``frostline finetune --task NAME=LABELS.csv``: many heads on one trunk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from frostline.cli.console import ERRORS, OUTPUT, Live, Table, count, print_json, say
from frostline.errors import FrostlineError, name_some

if TYPE_CHECKING:
    from frostline.finetune.tasks_result import TasksResult


def finetune_tasks(
    options: Sequence[str], settings: dict[str, Any], *, patience: int | None, out: Path | None, as_json: bool
) -> None:
    """Train a head for each task and print what became of them.

    Args:
        options: each ``NAME=LABELS.csv``.
        settings: of a run with one task.
        patience: stop a head after so many epochs without a better accuracy.
        out: the run folder.
        as_json: print JSON and nothing else.

    Raises:
        FrostlineError: no model is named.
        Exit: with 1 if something moved that should have stayed, or a head diverged; with 130 if it was interrupted.
    """
    from frostline.finetune.config import FinetuneConfig
    from frostline.finetune.tasks_config import TasksConfig, tasks_from
    from frostline.finetune.tasks_job import run_tasks

    tasks = tasks_from(options)
    if settings["model"] is None:
        raise FrostlineError(f"--task {options[0]}: which model?\n  fix: add --model timm/resnet18, for example")
    if settings["data"] is None:
        settings = {**settings, "data": str(Path(next(iter(tasks.values()))).parent)}
    try:
        with Live(ERRORS if as_json else OUTPUT) as live:
            result = run_tasks(TasksConfig(tasks, FinetuneConfig(**settings), patience), out, progress=live)
    except KeyboardInterrupt:
        ERRORS.print("stopped; a run with --task is not resumed, start it again", soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json(result.to_json())
    else:
        say("", *_told(result), "", *_places(result))
    if not result.isolated or result.trained.diverged:
        raise typer.Exit(1)


def refuse_to_resume_tasks(folder: Path) -> None:
    """Say that the run in a folder is one with ``--task``, if it is.

    Raises:
        FrostlineError: it is.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return  # what is wrong is said by who goes on with it
    if isinstance(config, dict) and "tasks" in config:
        raise FrostlineError(
            f"--resume {folder}: a run with --task is not resumed, for its heads train in seconds\n"
            "  fix: start it again with another --out"
        )


def _told(result: TasksResult) -> list[object]:
    columns = ["head", "classes", "train", "val", "accuracy", "largest class", "epoch", "ended", "seconds"]
    rows: list[list[object]] = []
    for row in result.trained.rows:
        data = result.tasks[row.name]
        ended = "stopped early" if row.stopped_early else "diverged" if row.diverged else "all epochs"
        accuracy = None if row.accuracy is None or row.diverged else f"{row.accuracy:.2%}"
        sizes = len(data.classes), len(data.train), len(data.val)
        rows.append([row.name, *sizes, accuracy, f"{data.largest_class:.2%}", row.epoch or None, ended, row.seconds])
    held, moved = result.certificate["held"], result.certificate["moved"]
    told = f"; moved: {name_some(moved)}" if moved else ""
    by_others = [head.name for head in result.trained.isolation.heads if not head.alone]
    among = f"moved by other heads: {name_some(by_others)}" if by_others else "no head moved another one"
    return [
        Table(columns, rows),
        "",
        *(
            f"{row.name} diverged: {row.diverged}; it is not in the model"
            for row in result.trained.rows
            if row.diverged
        ),
        f"held: {len(held) - len(moved):,} of {len(held):,} state entries of the trunk equal to the bit{told}",
        f"heads: {among}",
    ]


def _places(result: TasksResult) -> list[str]:
    features, heads = (result.spent.get(name, 0.0) for name in ("prefix", "head"))
    images = (
        f"features of {count(result.images, 'image')} {features:.1f} s ({features / result.images * 1e3:.0f} ms each)"
    )
    return [
        f"time         {images}, {count(len(result.trained.rows), 'head')} {heads:.1f} s",
        f"run folder   {result.folder}",
        *([] if result.page is None else [f"report       {result.page}"]),
    ]
