"""A run of few-shot learning as one self-contained HTML page: no network, readable without scripts.

Knows dataclasses only. The same page gives the same bytes, so that reports can be compared and signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline.report.curves import PHASE_STYLES, Curve, draw_charts
from frostline.report.norm_page import Range, Scale
from frostline.report.page_templates import render_page

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class AccuracyLine:
    """The accuracy under one statistics policy.

    Attributes:
        policy: its name.
        meaning: what it normalizes queries with.
        kind: ``transductive`` or ``inductive``.
        queries: query examples of a class that were asked in one pass.
        measured: the accuracy with its 95 % interval, shares in 0..1; ``None`` if adapting blew up on every task.
        tasks: that count.
        skipped: tasks on which adapting blew up.
        why: the first reason for that.
        trained: whether the net was trained with this policy.
    """

    policy: str
    meaning: str
    kind: str
    queries: int
    measured: Range | None
    tasks: int
    skipped: int = 0
    why: str = ""
    trained: bool = False


@dataclass(frozen=True)
class VariationLine:
    """How much the statistics of one layer vary.

    Attributes:
        layer: its path.
        between: of the means, between tasks, in standard deviations of the layer's values.
        within: likewise within a task.
        between_scale: of the logarithms of standard deviations, between tasks.
        within_scale: likewise within a task.
    """

    layer: str
    between: float
    within: float
    between_scale: float
    within_scale: float


@dataclass(frozen=True)
class MetaPage:
    """Everything that the page says.

    Attributes:
        title: what was learned.
        claim: what came of it, in a sentence.
        evidence: on what that was measured.
        accuracies: by policy and number of queries.
        policies: one net under many policies; empty where that was not measured.
        policy_note: what was measured before that, a sentence.
        curves: over the iterations.
        variation: by layer, in the order of the model.
        conditions: what changes the numbers: names and values.
        settings: what the run was asked to do: names and values.
        notes: what the reader should know, a sentence each.
        generator: the program and version that made the page.
    """

    title: str
    claim: str
    evidence: str
    accuracies: tuple[AccuracyLine, ...]
    policies: tuple[AccuracyLine, ...] = ()
    policy_note: str = ""
    curves: tuple[Curve, ...] = ()
    variation: tuple[VariationLine, ...] = ()
    conditions: tuple[tuple[str, str], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    generator: str = ""


@dataclass(frozen=True)
class SizeRow:
    """The accuracies of one policy, a cell for each number of queries; ``None`` where that was not measured."""

    first: AccuracyLine
    cells: tuple[AccuracyLine | None, ...]


def render_meta(page: MetaPage) -> str:
    """Render the page.

    Every name is escaped; the page loads nothing, and its content security policy forbids that it could. The same
    page gives the same text, byte for byte. Nothing is written, and matplotlib's settings stay as they were.

    Args:
        page: what the page says.

    Returns:
        The text of one HTML file, to be written as UTF-8.

    Raises:
        MissingExtra: jinja2 is not installed, or matplotlib is not and there are curves.

    Example:
        >>> line = AccuracyLine("batch", "the batch", "transductive", 15, Range(0.9, 0.89, 0.91), 600)
        >>> text = render_meta(MetaPage("5-way 1-shot", "It learned.", "600 tasks", (line,)))
        >>> "± 1.0" in text
        True
    """
    measured = [line.measured for line in page.policies if line.measured is not None]
    return render_page(
        "meta.html.j2",
        parts=("charts", "strips", "meta"),
        filters={"half": _half},
        page=page,
        sizes=sorted({line.queries for line in page.accuracies}),
        rows=by_size(page.accuracies),
        scale=Scale.over(measured, is_share=True),
        said=_percent,
        tick=_short_percent,
        charts=draw_charts(page.curves, over="iteration"),
        phase_styles=PHASE_STYLES,
        schema_version=SCHEMA_VERSION,
    )


def by_size(lines: Sequence[AccuracyLine]) -> list[SizeRow]:
    """A row for each policy, with a cell for each number of queries that occurs.

    Example:
        >>> one, many = (AccuracyLine("batch", "", "transductive", n, None, 0) for n in (1, 15))
        >>> [[cell and cell.queries for cell in row.cells] for row in by_size([one, many])]
        [[1, 15]]
    """
    sizes = sorted({line.queries for line in lines})
    rows: list[SizeRow] = []
    for policy in dict.fromkeys(line.policy for line in lines):
        own = {line.queries: line for line in lines if line.policy == policy}
        rows.append(SizeRow(next(iter(own.values())), tuple(own.get(size) for size in sizes)))
    return rows


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _short_percent(value: float) -> str:
    return f"{100 * value:g}%"


def _half(found: Range) -> str:
    return f"± {100 * (found.high - found.low) / 2:.1f}"
