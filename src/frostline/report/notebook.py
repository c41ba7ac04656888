"""How far a run is, in a notebook: one output that is written anew, with a bar and the lines that were said."""

from __future__ import annotations

import importlib
import time
from html import escape
from typing import TYPE_CHECKING, Any

from frostline.errors import MissingExtra, printable
from frostline.report.figures import count

if TYPE_CHECKING:
    from frostline.finetune.metrics import EpochRow
    from frostline.meta.run_progress import IterationRow, ValidationRow

# Seconds between two drawings of a bar; lines are shown at once.
EVERY = 0.2
# Of a long run, so many lines are shown.
MOST_LINES = 12


class NotebookProgress:
    """Shows in a notebook how far a run is; pass it as ``progress=``.

    For :func:`frostline.finetune.run` and ``resume``, and for :func:`frostline.meta.train`. It can be called, too: with
    a pass and its batch, as the functions of :mod:`frostline.norms` do, or with how many of how many are done, as
    :meth:`frostline.fast.FeatureCache.fill` does. What is computed does not depend on it.

    Raises:
        MissingExtra: there is no IPython, in which notebooks run.

    Example::

        from frostline.finetune import FinetuneConfig, run
        from frostline.report import NotebookProgress

        result = run(FinetuneConfig(), progress=NotebookProgress())
    """

    def __init__(self) -> None:
        try:
            self._display: Any = importlib.import_module("IPython.display")
        except ModuleNotFoundError as error:
            raise MissingExtra(
                "Progress in a notebook needs IPython, which is not installed: this is no notebook.\n"
                "  fix: leave out progress=, or use this in Jupyter or IPython"
            ) from error
        self._shown: Any = None
        self._drawn = 0.0
        self._lines: list[str] = []
        self._bar: tuple[str, int, int | None] | None = None
        self._iterations = 0

    def say(self, line: str) -> None:
        """A sentence about what happens now."""
        self._lines.append(line)
        self._draw(at_once=True)

    def features(self, done: int, total: int) -> None:
        """So many of the features to compute are computed."""
        self._move("features", done, total)

    def begin(self, phase: str | int, total: int, done: int = 0) -> None:
        """Training begins: a phase, its epochs and how many are done, or the iterations of a few-shot run and those."""
        if isinstance(phase, int):
            self._iterations, done = phase, total
            self._move(f"iteration {done:,} of {phase:,}", done, phase)
        else:
            behind = f", {done} done" if done else ""
            self.say(f"training {phase}: {count(total, 'epoch')}{behind}")

    def step(self, phase: str, epoch: int, done: int, steps: int, loss: float) -> None:
        """A step of an epoch was taken."""
        self._move(f"{phase}, epoch {epoch}: loss {loss:.4f}", done, steps)

    def epoch(self, row: EpochRow) -> None:
        """An epoch is over."""
        self._bar = None
        figures = f"loss {row.loss:.4f}, accuracy {row.accuracy:.2%}, {row.seconds:.1f} s"
        self.say(f"epoch {row.epoch}/{row.epochs}: {figures}")

    def iteration(self, row: IterationRow) -> None:
        """A step of the outer optimizer was taken."""
        right = "" if row.accuracy is None else f": accuracy {row.accuracy:.1%}"
        self._move(f"iteration {row.iteration:,} of {self._iterations:,}{right}", row.iteration, self._iterations)

    def validated(self, row: ValidationRow) -> None:
        """A validation was made."""
        right = "no task was finished" if row.accuracy is None else f"accuracy {row.accuracy:.1%}"
        self.say(f"validation after {row.iteration:,}: {right}")

    def __call__(self, what: str | int, number: int) -> None:
        """A batch of a pass is done, or so many of so many."""
        if isinstance(what, int):
            self._move("", what, number)
        else:
            self._move(f"{what}: batch {number:,}", number, None)

    def _move(self, label: str, done: int, total: int | None) -> None:
        self._bar = (label, done, total)
        self._draw(at_once=done == total)

    def _draw(self, *, at_once: bool) -> None:
        if not at_once and time.monotonic() - self._drawn < EVERY:
            return
        if self._shown is None:
            self._shown = self._display.display(self, display_id=True)
        else:
            self._shown.update(self)
        self._drawn = time.monotonic()

    def __repr__(self) -> str:
        bar = [] if self._bar is None else [_bar_text(*self._bar)]
        return "\n".join(map(printable, [*self._said(), *bar]))

    def _repr_html_(self) -> str:
        lines = "\n".join(escape(printable(line)) for line in self._said())
        said = f"<pre>{lines}</pre>" if lines else ""
        if self._bar is None:
            return said
        label, done, total = self._bar
        # Without a value the bar says that something goes on, not how far it is.
        value = "" if total is None else f' value="{done}" max="{max(total, 1)}"'
        text = escape(printable(label))
        return f'{said}<label>{text} <progress{value} aria-label="{text or "progress"}"></progress></label>'

    def _said(self) -> list[str]:
        left = len(self._lines) - MOST_LINES
        return [f"... ({left} earlier lines)", *self._lines[-MOST_LINES:]] if left > 0 else self._lines


def _bar_text(label: str, done: int, total: int | None) -> str:
    counted = "" if total is None else f"{done:,} of {total:,}"
    return " ".join(part for part in (label, counted) if part)
