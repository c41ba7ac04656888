"""Where the command line prints: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:  # importing it would import torch, and `--help` should not wait for that
    from typing_extensions import Self

    from frostline.finetune.metrics import EpochRow

# Launchers start several processes of the same command; the first speaks for all of them.
FIRST_PROCESS = os.environ.get("RANK", "0") == "0"
# Without emoji codes: the names that are printed are the user's, and `cuda:0` or `a:b:c` are none.
OUTPUT = Console(quiet=not FIRST_PROCESS, emoji=False)
ERRORS = Console(stderr=True, quiet=not FIRST_PROCESS, emoji=False)


def print_json(value: object) -> None:
    """Print a value as JSON to standard output, from the first process only."""
    if FIRST_PROCESS:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")


def count(number: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> count(1, "epoch"), count(2_000, "epoch")
        ('1 epoch', '2,000 epochs')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class BarAndLines:
    """A moving bar in a terminal, and lines anywhere.

    Args:
        console: where to.
        columns: of the bar, behind the description and the bar itself.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """A sentence about what happens now."""
        self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Live(BarAndLines):
    """Shows a run: a moving bar in a terminal, and a line for each epoch anywhere.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console, TextColumn("{task.fields[note]}"), TimeElapsedColumn())

    def features(self, done: int, total: int) -> None:
        """So many of the features to compute are computed."""
        if self._task is None:
            self._task = self._bar.add_task("features", total=total, note="")
        self._bar.update(self._task, completed=done, total=total)
        if done == total:
            self._remove()

    def begin(self, phase: str, epochs: int, done: int) -> None:
        """A phase begins, or goes on after ``done`` epochs."""
        behind = f", {done} done" if done else ""
        self._print(f"training {phase}: {count(epochs, 'epoch')}{behind}")

    def step(self, phase: str, epoch: int, done: int, steps: int, loss: float) -> None:
        """A step of an epoch was taken."""
        if self._task is None:
            self._task = self._bar.add_task(phase, total=steps, note="")
        note = f"loss {loss:.4f}"
        self._bar.update(self._task, description=f"epoch {epoch}", completed=done, total=steps, note=note)

    def epoch(self, row: EpochRow) -> None:
        """An epoch is over."""
        self._remove()
        width = len(str(row.epochs))
        self._print(
            f"  epoch {row.epoch:>{width}}/{row.epochs}  loss {row.loss:.4f}  accuracy {row.accuracy:7.2%}  "
            f"{row.seconds:.1f} s"
        )

    def _remove(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
