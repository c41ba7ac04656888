"""Every held entry as one step of a line: flat where it stayed, a deflection where it moved; pure Python.

The line is read like a seismograph: two runs under each other show at a glance which of them shook the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from frostline.report import figures
from frostline.report.module_tree import MovedEntry
from frostline.report.outcome import Outcome

WIDTH = 1000
HEIGHT = 48
# The smallest deflection still has to be seen, and an unknown size must not look like a large one.
_LEAST = 0.22
_UNKNOWN = 0.35


@dataclass(frozen=True)
class Trace:
    """One run as a line.

    Attributes:
        title: the run.
        entries: how many entries were meant to stay.
        moved: how many of them moved.
        line: the data of an SVG path within ``WIDTH`` by ``HEIGHT``.
        text: the same in words.
    """

    title: str
    entries: int
    moved: int
    line: str
    text: str


def draw_traces(paths: Sequence[str], runs: Sequence[Outcome]) -> tuple[Trace, ...]:
    """Draw each run over the same entries, with one scale of heights for all.

    Args:
        paths: the held entries, in the order of the model; moved entries that it lacks follow behind.
        runs: the runs.

    Example:
        >>> draw_traces(["a", "b"], [Outcome("held", 2, (), ())])[0].line
        'M0 24H1000'
    """
    order = {path: place for place, path in enumerate(paths)}
    for run in runs:
        for entry in run.moved:
            order.setdefault(entry.path, len(order))
    logs = [math.log10(value) for run in runs for entry in run.moved if (value := _measured(entry))]
    low, high = min(logs, default=0.0), max(logs, default=0.0)
    step = WIDTH / max(1, len(order))
    traces: list[Trace] = []
    for run in runs:
        heights = {order[entry.path]: _height(entry.max_abs, low, high) for entry in run.moved}
        traces.append(Trace(run.title, run.held, len(run.moved), _line(heights, step), _words(run)))
    return tuple(traces)


def _measured(entry: MovedEntry) -> float:
    """Its largest difference, or zero where there is none that a logarithm could be taken of."""
    value = entry.max_abs
    return value if value is not None and math.isfinite(value) else 0.0


def _height(value: float | None, low: float, high: float) -> float:
    if value is None or value == 0:
        return _UNKNOWN
    if not math.isfinite(value):
        return 1.0
    return 1.0 if high == low else _LEAST + (1 - _LEAST) * (math.log10(value) - low) / (high - low)


def _line(heights: dict[int, float], step: float) -> str:
    middle = HEIGHT // 2
    pieces = [f"M0 {middle}"]
    for place in sorted(heights):
        reach = heights[place] * (middle - 2)
        # Up, down and back within the entry's own step, so that neighbors stay apart.
        at = [place * step + step * share for share in (0.2, 0.4, 0.6, 0.8)]
        pieces.append(
            f"H{at[0]:.2f}L{at[1]:.2f} {middle - reach:.2f}L{at[2]:.2f} {middle + reach:.2f}L{at[3]:.2f} {middle}"
        )
    return "".join(pieces) + f"H{WIDTH}"


def _words(run: Outcome) -> str:
    if not run.moved:
        return f"{run.title}: a flat line, none of {figures.count(run.held, 'entry', 'entries')} moved."
    text = f"{run.title}: {len(run.moved):,} of {figures.count(run.held, 'entry', 'entries')} moved"
    most = max(run.moved, key=_measured)
    if not _measured(most):
        return text + "."
    return f"{text}, {most.path} most, by {figures.size(most.max_abs)}."
