"""What was found about normalization statistics as one self-contained HTML page: no network, readable without scripts.

Knows dataclasses only. The same page gives the same bytes, so that reports can be compared and signed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from frostline.report import figures
from frostline.report.norm_charts import Channel, LayerLine, draw_channels, draw_depth
from frostline.report.page_templates import render_page

SCHEMA_VERSION = 1
# So many layers stand on the page at once; the rest unfolds.
_MOST_LAYERS = 8


@dataclass(frozen=True)
class Range:
    """A figure, and the range in which it lies with 95 % confidence."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class CauseLine:
    """One cause.

    Attributes:
        name: its name.
        sentence: what it says, in a sentence.
        confidence: between 0 and 1.
        evidence: the figures behind it.
        layers: how many layers show it.
    """

    name: str
    sentence: str
    confidence: float
    evidence: str
    layers: int


@dataclass(frozen=True)
class ScoreLine:
    """The metric with certain statistics in place.

    Attributes:
        name: a short name.
        statistics: which statistics those are.
        measured: the metric.
        gain: its difference to the last line before it that has none, on the same samples.
    """

    name: str
    statistics: str
    measured: Range
    gain: Range | None = None


@dataclass(frozen=True)
class RemedyLine:
    """One remedy.

    Attributes:
        name: what to do.
        how: the call that does it.
        advice: ``apply``, ``no better``, ``worse`` or ``not measured``.
        measured: the metric on data that it did not see.
        gain: its difference to leaving the model as it is.
    """

    name: str
    how: str
    advice: str
    measured: Range | None = None
    gain: Range | None = None


@dataclass(frozen=True)
class ChangeLine:
    """What a recalibration does to one layer.

    Attributes:
        path: its dotted path.
        count: values per channel behind the new statistics.
        change: how far its output moves, in standard deviations of that output.
        mean_shift: the largest change of a channel's mean, in running standard deviations.
        var_ratio: median of new variance over old.
        residual: how far the new variances are from what the layer then meets in eval mode.
    """

    path: str
    count: int
    change: float
    mean_shift: float
    var_ratio: float
    residual: float


@dataclass(frozen=True)
class NormPage:
    """Everything that the page says.

    Attributes:
        kind: what was done.
        title: what it was done to.
        good: whether all is well.
        claim: what was found, in a sentence.
        evidence: the figures behind that.
        facts: names and values, printed as they are.
        causes: of a diagnosis, the most likely first.
        layers: of a diagnosis, in the order of the forward pass.
        scores: the metric under several statistics.
        remedies: the best first.
        worst: of the layers that are off most, path and ``(running mean, running sd, measured mean, measured sd)`` of
            each channel.
        changes: of a recalibration, in the order of the forward pass.
        notes: what the reader should know, a sentence each.
        metric: what scores are measured by; ``accuracy`` is a share in 0..1.
        generator: the program and version that made the page.
    """

    kind: str
    title: str
    good: bool
    claim: str
    evidence: str
    facts: tuple[tuple[str, str], ...] = ()
    causes: tuple[CauseLine, ...] = ()
    layers: tuple[LayerLine, ...] = ()
    scores: tuple[ScoreLine, ...] = ()
    remedies: tuple[RemedyLine, ...] = ()
    worst: tuple[tuple[str, tuple[Channel, ...]], ...] = ()
    changes: tuple[ChangeLine, ...] = ()
    notes: tuple[str, ...] = ()
    metric: str = "accuracy"
    generator: str = ""


@dataclass(frozen=True)
class Scale:
    """Where figures lie on a strip from 0 to 100 %.

    Attributes:
        low: the figure at the left edge.
        high: the figure at the right edge.
        ticks: round figures between them.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    @staticmethod
    def over(ranges: Sequence[Range], *, is_share: bool) -> Scale:
        """A scale that shows all of the ranges with some room.

        Example:
            >>> Scale.over([Range(0.5, 0.4, 0.6)], is_share=True).ticks
            (0.4, 0.5, 0.6)
        """
        finite = [value for r in ranges for value in (r.value, r.low, r.high) if math.isfinite(value)] or [0.0, 1.0]
        margin = 0.06 * (max(finite) - min(finite)) or 0.05 * abs(max(finite)) or 0.5
        low, high = min(finite) - margin, max(finite) + margin
        if is_share:
            low, high = max(low, -0.02), min(high, 1.02)
        # About four steps of 1, 2 or 5 times a power of ten.
        rough = (high - low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return Scale(low, high, tuple(round(i * step, 12) for i in range(first, last + 1)))

    def at(self, value: float) -> str:
        """The place of a figure, as CSS writes it."""
        share = (value - self.low) / (self.high - self.low) if math.isfinite(value) else 0.0
        return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def render_norms(page: NormPage) -> str:
    """Render the page.

    Every name is escaped; the page loads nothing, and its content security policy forbids that it could. The same
    page gives the same text, byte for byte. Nothing is written, and matplotlib's settings stay as they were.

    Args:
        page: what the page says.

    Returns:
        The text of one HTML file, to be written as UTF-8.

    Raises:
        MissingExtra: jinja2 is not installed, or matplotlib is not and there is something to draw.

    Example:
        >>> text = render_norms(NormPage("diagnosis", "ResNet", True, "All fits.", "The worst is off by 0.01 sd."))
        >>> "All fits." in text
        True
    """
    is_share = page.metric == "accuracy"
    measured = [line.measured for line in (*page.scores, *page.remedies) if line.measured is not None]
    numbered = list(enumerate(page.layers, 1))
    ranked = sorted(numbered, key=lambda pair: (not pair[1].off, -_finite(pair[1].effect)))
    return render_page(
        "norms.html.j2",
        parts=("charts", "strips", "norms"),
        filters={"tone": gain_tone, "chance": _chance},
        page=page,
        scored=_with_base(page.scores),
        scale=Scale.over(measured, is_share=is_share),
        said=_percent if is_share else figures.size,
        tick=_short_percent if is_share else figures.size,
        gained=_points if is_share else _signed,
        unit="points" if is_share else "",
        depth=draw_depth(page.layers),
        channels=draw_channels(page.worst),
        numbered=numbered,
        foremost=ranked[:_MOST_LAYERS],
        off=sum(layer.off for layer in page.layers),
        schema_version=SCHEMA_VERSION,
    )


def gain_tone(gain: Range | None) -> str:
    """Whether a difference is more than chance: ``good``, ``bad`` or neither.

    Example:
        >>> gain_tone(Range(0.1, 0.05, 0.15)), gain_tone(Range(-0.1, -0.2, 0.01))
        ('good', '')
    """
    if gain is None:
        return ""
    return "good" if gain.low > 0 else "bad" if gain.high < 0 else ""


def _with_base(scores: Sequence[ScoreLine]) -> list[tuple[ScoreLine, float]]:
    """Each line with the figure that its difference is taken to: the last line before it that has none."""
    found: list[tuple[ScoreLine, float]] = []
    for line in scores:
        found.append((line, line.measured.value if line.gain is None or not found else found[-1][1]))
    return found


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _chance(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else figures.size(p_value)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%" if math.isfinite(value) else figures.size(value)


def _short_percent(value: float) -> str:
    return f"{100 * value:g}%"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\u2212")


def _signed(value: float) -> str:
    text = figures.size(value)
    return text if text.startswith("\u2212") or value == 0 else f"+{text}"
