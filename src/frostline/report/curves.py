"""Curves over epochs to charts: matplotlib draws them, the page colors them.

Knows numbers and phases only. No name is drawn into the picture: names stand in the page's own text, which escapes
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frostline.extras import require
from frostline.report import figures
from frostline.report.svg import color, draw


@dataclass(frozen=True)
class Curve:
    """One quantity over the epochs of one phase.

    Attributes:
        name: the quantity, such as ``loss`` or ``accuracy of digit``.
        phase: the phase of training, or the run, that it belongs to.
        epochs: where it was measured.
        values: what was measured there; NaN leaves a gap.
        unit: ``%`` for shares in 0..1, which are printed as percent; anything else stands on the axis.
    """

    name: str
    phase: str
    epochs: tuple[float, ...]
    values: tuple[float, ...]
    unit: str = ""


@dataclass(frozen=True)
class PhaseStyle:
    """How a phase is drawn; dash and marker tell phases apart where color cannot.

    Attributes:
        dash: lengths drawn and left out, in points; empty is solid.
        marker: matplotlib's name of the marker.
        shape: the same marker as the data of an SVG path around (0, 0).
    """

    dash: tuple[float, ...]
    marker: str
    shape: str


PHASE_STYLES = (
    PhaseStyle((), "o", "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z"),
    PhaseStyle((6, 2.5), "s", "M-2.7-2.7h5.4v5.4h-5.4z"),
    PhaseStyle((1.5, 2), "^", "M0-3.4L3.4 3h-6.8z"),
    PhaseStyle((7, 2.5, 1.5, 2.5), "D", "M0-3.6L3.6 0L0 3.6L-3.6 0z"),
    PhaseStyle((10, 3), "v", "M0 3.4L3.4-3h-6.8z"),
    PhaseStyle((3, 1.5), "P", "M-1.2-3.4h2.4v2.2h2.2v2.4h-2.2v2.2h-2.4v-2.2h-2.2v-2.4h2.2z"),
)


@dataclass(frozen=True)
class Series:
    """One phase within a chart: its style's place in :data:`PHASE_STYLES`, and its figures as printed."""

    phase: str
    style: int
    epochs: str
    first: str
    last: str


@dataclass(frozen=True)
class Chart:
    """One quantity, drawn.

    Attributes:
        title: the quantity.
        over: what is counted from left to right.
        svg: the picture as SVG for the inside of an HTML page; safe to insert as it is.
        text: what the picture shows, in words.
        series: a row for each phase.
        columns: the phases, as headings of ``rows``.
        rows: every value: the epoch, then a cell for each phase.
    """

    title: str
    over: str
    svg: str
    text: str
    series: tuple[Series, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


_WIDTH, _HEIGHT = 480, 236
_CROWDED = 24


def draw_charts(curves: Sequence[Curve], *, metric: str = "accuracy", over: str = "epoch") -> tuple[Chart, ...]:
    """Draw one chart for each quantity, with its phases as lines.

    A phase looks the same in every chart, all charts share the epochs, and charts of one quantity for several heads
    share the scale of their values. Curves without a finite value are left out. matplotlib's settings stay as they
    were.

    Args:
        curves: the curves; those of one name share a chart.
        metric: the quantity that is a share in 0..1 and is printed as percent.
        over: what ``epochs`` count, in the singular.

    Raises:
        MissingExtra: matplotlib is not installed, and there is something to draw.
        ValueError: a curve has another number of epochs than of values.

    Example:
        >>> chart = draw_charts([Curve("loss", "base", (1, 2, 3), (2.3, 0.9, 0.4))])[0]
        >>> chart.text
        'loss over epochs. base: 2.3 at epoch 1, 0.4 at epoch 3.'
        >>> chart.svg.startswith("<svg")
        True
    """
    for curve in curves:
        if len(curve.epochs) != len(curve.values):
            raise ValueError(
                f"curve {curve.name!r} of phase {curve.phase!r} does not fit itself\n"
                f"  epochs: {len(curve.epochs)}\n  values: {len(curve.values)}"
            )
    drawn = [curve for curve in curves if any(map(math.isfinite, curve.values))]
    styles = {phase: i % len(PHASE_STYLES) for i, phase in enumerate(dict.fromkeys(c.phase for c in drawn))}
    charts: list[Chart] = []
    for name in dict.fromkeys(curve.name for curve in drawn):
        own = [curve for curve in drawn if curve.name == name]
        kin = [curve for curve in drawn if _quantity(curve) == _quantity(own[0])]
        share = _is_share(own[0], metric)
        frame = _Frame(_across(drawn), _limits(kin, is_share=share), share, over, f"frostline-{len(charts)}")
        charts.append(_chart(own, styles, frame))
    return tuple(charts)


def _quantity(curve: Curve) -> tuple[str, str]:
    return curve.name.partition(" of ")[0], curve.unit


def _is_share(curve: Curve, metric: str) -> bool:
    return curve.unit == "%" or (not curve.unit and _quantity(curve)[0] == metric)


@dataclass(frozen=True)
class _Frame:
    """What a chart has in common with its neighbors; the salt keeps their element ids apart."""

    epochs: tuple[float, float]
    values: tuple[float, float]
    is_share: bool
    over: str
    salt: str


def _chart(own: list[Curve], styles: dict[str, int], frame: _Frame) -> Chart:
    def said(value: float) -> str:
        return figures.percent(value) if frame.is_share else f"{figures.size(value)} {own[0].unit}".rstrip()

    series: list[Series] = []
    sentences: list[str] = []
    for curve in own:
        pairs = [(e, v) for e, v in zip(curve.epochs, curve.values, strict=True) if math.isfinite(v)]
        (start, first), (end, last) = pairs[0], pairs[-1]
        epochs = f"{start:g}" if start == end else f"{start:g}–{end:g}"
        series.append(Series(curve.phase, styles[curve.phase], epochs, said(first), said(last)))
        sentences.append(
            f"{curve.phase}: {said(first)} at {frame.over} {start:g}, {said(last)} at {frame.over} {end:g}."
        )
    known = [dict(zip(curve.epochs, curve.values, strict=True)) for curve in own]
    rows = tuple(
        (f"{epoch:g}", *(said(values[epoch]) if epoch in values else figures.ABSENT for values in known))
        for epoch in sorted({epoch for curve in own for epoch in curve.epochs})
    )
    return Chart(
        title=own[0].name,
        over=frame.over,
        svg=_draw(own, styles, frame),
        text=f"{own[0].name} over {frame.over}s. {' '.join(sentences)}",
        series=tuple(series),
        columns=tuple(curve.phase for curve in own),
        rows=rows,
    )


def _draw(own: list[Curve], styles: dict[str, int], frame: _Frame) -> str:
    def fill(sheet: Any) -> None:
        ticker: Any = require("matplotlib.ticker", extra="report", purpose="Drawing the pictures of a report")
        axes = sheet.add_axes((0.125, 0.155, 0.85, 0.805))
        for curve in own:
            _plot(axes, curve, styles[curve.phase])
        axes.set_xlim(*frame.epochs)
        axes.set_ylim(*frame.values)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
        if frame.is_share:
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(1.0))
        axes.grid(visible=True, axis="y")
        axes.tick_params(length=0, pad=6)
        axes.spines[["left", "right", "top"]].set_visible(False)

    return draw(_WIDTH, _HEIGHT, frame.salt, fill)


def _plot(axes: Any, curve: Curve, style: int) -> None:
    look = PHASE_STYLES[style]
    axes.plot(
        curve.epochs,
        [value if math.isfinite(value) else math.nan for value in curve.values],
        color=color(style),
        linestyle=(0, look.dash) if look.dash else "-",
        linewidth=1.8,
        marker=look.marker,
        markersize=5,
        markeredgewidth=0,
        # Markers on every point of a long curve would hide its dashes.
        markevery=max(1, len(curve.values) // _CROWDED + (len(curve.values) > _CROWDED)),
    )


def _across(drawn: list[Curve]) -> tuple[float, float]:
    epochs = [epoch for curve in drawn for epoch in curve.epochs]
    margin = 0.03 * (max(epochs) - min(epochs)) or 0.5
    return min(epochs) - margin, max(epochs) + margin


def _limits(kin: list[Curve], *, is_share: bool) -> tuple[float, float]:
    values = [value for curve in kin for value in curve.values if math.isfinite(value)]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    if is_share:
        # Room for the markers at 100%, which must not be cut in half.
        return max(low - margin, -0.02), min(high + margin, 1.0 + margin / 2)
    return (0.0 if 0 <= low < 0.5 * high else low - margin), high + margin
