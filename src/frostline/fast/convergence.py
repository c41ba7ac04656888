"""The rule by which a front layer counts as converged, and the report that says so layer by layer.

Pure Python: knows figures of windows, not models.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from frostline.json_values import finite
from frostline.tables import html_table, text_table

SCHEMA_VERSION = 1
STEADY, FROZEN = "steady", "frozen"
# Rates are compared after arithmetic in float; a schedule that goes up does so by far more.
_SAME_RATE = 1e-6


@dataclass(frozen=True)
class Rule:
    """When a layer is steady in a window.

    Attributes:
        tolerance: its update is at most so much of what is usual for the model.
        rest: or at most so much, whatever is usual.
        growth: its gradient has grown by at most so much more than is usual, as a part of what it was.
        patience: in how many windows in a row it has to be steady to count as converged.
    """

    tolerance: float
    rest: float
    growth: float
    patience: int

    def bar(self, histories: Iterable[History]) -> float:
        """The largest update that is still at rest.

        What is usual is the median over the layers of the largest update that each has had in a window; the lower one
        of two in the middle. One layer that goes far, as one that began at 0 does, therefore does not make all others
        look as if they stood still.

        Example:
            >>> rule = Rule(tolerance=0.2, rest=1e-3, growth=0.25, patience=2)
            >>> rule.bar([History(peak=0.05), History(peak=0.1), History(peak=3.0)])
            0.020000000000000004
        """
        peaks = [each.peak for each in histories if each.peak is not None]
        return max(self.rest, self.tolerance * statistics.median_low(peaks)) if peaks else self.rest

    @staticmethod
    def usual_growth(histories: Sequence[History]) -> float:
        """What the gradients of all layers did: the median of new over old, the lower one of two in the middle.

        A window of hard samples makes all gradients larger, and says nothing about one layer. Of a single layer nothing
        is usual: 1.

        Example:
            >>> Rule.usual_growth([History(growth=3.0), History(growth=2.0), History(growth=2.5)])
            2.5
        """
        found = [each.growth for each in histories if each.growth is not None and 0 < each.growth < math.inf]
        return statistics.median_low(found) if len(found) > 1 else 1.0


@dataclass
class History:
    """What is remembered of a layer from window to window.

    Attributes:
        gradient: of the last window; ``None`` if there was none, or it was not finite.
        rate: of the last window.
        peak: the largest update of a window so far.
        steady: in how many windows in a row it has been steady.
        growth: the gradient of the last window over that of the window before it.
        relative_gradient: the same over what is usual.
        update: of the last window.
        verdict: of the last window, in words.
    """

    gradient: float | None = None
    rate: float | None = None
    peak: float | None = None
    steady: int = 0
    growth: float | None = None
    relative_gradient: float | None = None
    update: float | None = None
    verdict: str = "not seen yet"

    def see(self, gradient: float | None, update: float, rate: float) -> None:
        """Take in the figures of a window; :meth:`judge` comes behind, once the bar is known."""
        before, self.gradient = self.gradient, gradient if gradient is not None and math.isfinite(gradient) else None
        earlier, self.rate = self.rate, rate
        self.update = update
        self.growth = self.relative_gradient = None
        if before is not None and gradient is not None:
            self.growth = gradient / before if before else (math.inf if gradient else 0.0)
        if math.isfinite(update):
            self.peak = max(update, self.peak or 0.0)
        if gradient is None:
            self.verdict = "no gradient"
        elif not (math.isfinite(gradient) and math.isfinite(update)):
            self.verdict = "not finite"
        elif rate == 0:
            self.verdict = "its rate is 0"
        elif before is None:
            self.verdict = "first window"
        elif earlier is not None and rate > earlier * (1 + _SAME_RATE):
            self.verdict = "its rate rises"
        else:
            self.verdict = ""

    def judge(self, rule: Rule, bar: float, usual_growth: float) -> None:
        """Say whether it was steady in the window that was seen last."""
        self.relative_gradient = None if self.growth is None else self.growth / usual_growth
        if not self.verdict:
            assert self.update is not None, "its second window at least"
            assert self.relative_gradient is not None, "its second window at least"
            if self.update > bar:
                self.verdict = "moves"
            elif self.relative_gradient > 1 + rule.growth:
                self.verdict = "its gradient grows"
            else:
                self.verdict = STEADY
        self.steady = self.steady + 1 if self.verdict == STEADY else 0


@dataclass(frozen=True)
class ConvergenceRow:
    """One layer.

    Attributes:
        layer: the modules that it consists of.
        depth: its number from the input on.
        gradient: of the last window, over that of the window before it, and over what is usual for that.
        update: how far its weights went in the last window, as a part of their norm.
        steady: in how many windows in a row it has been steady.
        verdict: ``frozen``, ``steady``, or why it does not count as steady.
    """

    layer: str
    depth: int
    gradient: float | None
    update: float | None
    steady: int
    verdict: str


@dataclass(frozen=True)
class Move:
    """The boundary of what is frozen has moved; whoever keeps features follows.

    Attributes:
        before: how many layers from the input on were frozen.
        after: how many are.
        layers: their titles.
        parts: the same as paths of modules, and of parameters that stand alone.
        why: in words.

    Example:
        >>> print(Move(0, 2, ("stem", "blocks.0"), ("stem", "blocks.0"), "converged"))
        frozen from the input to blocks.0 (2 layers, 0 before): converged
    """

    before: int
    after: int
    layers: tuple[str, ...]
    parts: tuple[str, ...]
    why: str

    def __str__(self) -> str:
        if not self.after:
            return f"nothing is frozen any more ({self.before} layers before): {self.why}"
        return f"frozen from the input to {self.layers[-1]} ({self.after} layers, {self.before} before): {self.why}"


@dataclass(frozen=True)
class ConvergenceReport:
    """Which front layers have converged; prints as a table, also in a notebook.

    Attributes:
        rows: the layers from the input on, without the head.
        proposal: the title of the deepest layer up to which everything has converged, if more could be frozen than is.
        frozen: how many layers from the input on the watcher has frozen.
        windows: how many are over.
        steps: how many optimizer steps were seen.
        bar: the largest update that counted as at rest in the last window.
        rate_dropped: whether the rate of what still trains has dropped, so that what is frozen might go on.
        move: what was done at once; ``None`` if nothing was.
    """

    rows: tuple[ConvergenceRow, ...]
    proposal: str | None
    frozen: int
    windows: int
    steps: int
    bar: float
    rate_dropped: bool
    move: Move | None = None

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values with a schema version."""
        return finite({"schema_version": SCHEMA_VERSION, **asdict(self)})

    def verdict(self) -> str:
        """What follows, in a line."""
        if self.move is not None:
            return str(self.move)
        if self.rate_dropped:
            return "the rate has dropped: what is frozen might go on; take_back() lets it"
        if self.proposal is not None:
            return f"everything up to {self.proposal} has converged; freeze() freezes it"
        return "no more can be frozen yet"

    def __str__(self) -> str:
        said = f"{self.windows} windows, {self.steps} steps; at rest up to an update of {self.bar:.2g}"
        return f"{text_table(_COLUMNS, self._cells(), width=100)}\n{said}\n{self.verdict()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._cells(), caption=self.verdict())

    def _cells(self) -> Sequence[Sequence[object]]:
        return [(row.layer, row.depth, row.gradient, row.update, row.steady, row.verdict) for row in self.rows]


_COLUMNS = ("layer", "depth", "gradient", "update", "steady for", "verdict")


def saved(history: History) -> dict[str, Any]:
    """A history as JSON-ready values.

    Example:
        >>> restored(saved(History(peak=0.5))) == History(peak=0.5)
        True
    """
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(history).items()
    }


def restored(state: Mapping[str, Any]) -> History:
    """The history that :func:`saved` made values of; what was not finite is unknown."""
    return History(**state)
