"""Shows a few-shot run: a moving bar in a terminal, and a line now and then anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn

from frostline.cli.console import BarAndLines, count

if TYPE_CHECKING:  # importing it would import torch, and `--help` should not wait for that
    from frostline.meta.run_progress import IterationRow, ValidationRow

# So many lines tell of the training of a run.
LINES = 10


class MetaLive(BarAndLines):
    """Shows a run.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        note = TextColumn("{task.completed}/{task.total}  {task.fields[note]}")
        super().__init__(console, note, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._iterations = 0
        self._rows: list[IterationRow] = []

    def begin(self, iterations: int, done: int) -> None:
        """Training begins, or goes on after ``done`` iterations."""
        behind = f", {done:,} done" if done else ""
        self._print(f"training: {count(iterations, 'iteration')}{behind}")
        self._iterations = iterations
        self._task = self._bar.add_task("training", total=iterations, completed=done, note="")

    def iteration(self, row: IterationRow) -> None:
        """A step of the outer optimizer was taken."""
        self._rows.append(row)
        if self._task is not None:
            self._bar.update(self._task, completed=row.iteration, note=_figures([row]))
        if row.iteration == self._iterations or row.iteration % max(1, self._iterations // LINES) == 0:
            width = len(f"{self._iterations:,}")
            seconds = sum(each.seconds for each in self._rows) / len(self._rows)
            skipped = sum(each.skipped for each in self._rows)
            left_out = f"  {count(skipped, 'task')} skipped" if skipped else ""
            self._print(
                f"  iteration {row.iteration:>{width},}/{self._iterations:,}  {_figures(self._rows)}  "
                f"{seconds:.2f} s each{left_out}"
            )
            self._rows = []
        if row.iteration == self._iterations and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None

    def validated(self, row: ValidationRow) -> None:
        """A validation was made."""
        if row.accuracy is None:
            told = f"adapting blew up on all {row.skipped} tasks"
        else:
            told = f"accuracy {row.accuracy:.1%} ± {100 * (row.interval or 0):.1f} on {count(row.tasks, 'task')}"
        self._print(f"    validation after {row.iteration:,}: {told}")


def _figures(rows: list[IterationRow]) -> str:
    losses = [row.loss for row in rows if row.loss is not None]
    right = [row.accuracy for row in rows if row.accuracy is not None]
    if not losses:
        return "every task skipped"
    return f"loss {sum(losses) / len(losses):.4f}  accuracy {sum(right) / len(right):.1%}"
