"""Where the command line prints: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from frostline.cli.paint import wants_colour
from frostline.tables import fitted, text_table

if TYPE_CHECKING:  # importing it would import torch, and `--help` should not wait for that
    from typing_extensions import Self

    from frostline.finetune.metrics import EpochRow

# Launchers start several processes of the same command; the first speaks for all of them.
FIRST_PROCESS = os.environ.get("RANK", "0") == "0"


def _console(*, stderr: bool) -> Console:
    """A console that is in colour where :func:`wants_colour` says so.

    Without emoji codes: the names that are printed are the user's, and ``cuda:0`` or ``a:b:c`` are none. What
    ``FORCE_COLOR`` makes coloured is no terminal yet: a bar that moves would fill the log of a build server.
    """
    stream = sys.stderr if stderr else sys.stdout
    colour = wants_colour(stream)
    return Console(
        stderr=stderr,
        quiet=not FIRST_PROCESS,
        emoji=False,
        color_system=None if not colour else "auto" if stream.isatty() else "standard",
        force_terminal=stream.isatty(),
    )


OUTPUT = _console(stderr=False)
ERRORS = _console(stderr=True)


# What decides, by the colours it has in texts that are whole without colour.
_VERDICTS = (
    (re.compile(r"^(.*\S.*)\n *─[─ ]*$", re.MULTILINE), "bold"),
    (re.compile(r"^ *(─[─ ]*)$", re.MULTILINE), "dim"),
    (re.compile(r"^(error:)", re.MULTILINE), "bold red"),
    (re.compile(r"^(warning:)", re.MULTILINE), "bold yellow"),
    (re.compile(r"^ *(fix:|did you mean:|nearest names?:)", re.MULTILINE), "cyan"),
    (re.compile(r"(equal to the bit|\bhealthy\b|\bfits\b|^holds\b)", re.MULTILINE), "green"),
    (re.compile(r"(\bOFF\b|\bdoes not hold\b|\bdiverged\b|\bmoved: )"), "red"),
)


def coloured(text: str) -> Text:
    """A text with its headings, rules and verdicts in colour; the words stay as they are.

    Example:
        >>> [(span.start, span.end, span.style) for span in coloured("error: fix: yes").spans]
        [(0, 6, 'bold red')]
    """
    found = Text(text)
    for pattern, style in _VERDICTS:
        for match in pattern.finditer(text):
            found.stylize(style, *match.span(1))
    return found


def say(*values: object, console: Console | None = None) -> None:
    """Print each of them by its ``str``; tables are fitted to a terminal.

    Its width is that of ``COLUMNS``, where that is set. Into a file or a pipe names go whole.

    Args:
        values: what prints itself.
        console: where to; standard output by default.
    """
    console = console or OUTPUT
    with fitted(room(console)):
        for value in values:
            console.print(coloured(str(value)), soft_wrap=True)


@dataclass(frozen=True)
class Table:
    """A table that is laid out when it is printed, because only then is known how much room there is."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __str__(self) -> str:
        return text_table(self.columns, self.rows)


def room(console: Console) -> int | None:
    """The columns that a table has there; ``None`` where it is no terminal."""
    return max(shutil.get_terminal_size().columns, 20) if console.is_terminal else None


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
            disable=not console.is_terminal or console.is_dumb_terminal,
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
