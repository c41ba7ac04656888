"""One run of ``frostline finetune`` as one self-contained HTML page: no network, readable without scripts.

Knows dataclasses only. The same page gives the same bytes, so that reports can be compared and signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline.report import figures
from frostline.report.curves import PHASE_STYLES, Curve, draw_charts
from frostline.report.module_tree import HeldEntry, MovedEntry, grow_tree
from frostline.report.outcome import Outcome, by_role, compare
from frostline.report.page_templates import render_page
from frostline.report.spent_bars import SpentBar, draw_spent
from frostline.report.trace import draw_traces

SCHEMA_VERSION = 1
# Modules with moved entries start open, unless there are so many that the page would be nothing else.
_MOST_OPENED = 100


@dataclass(frozen=True)
class RunPage:
    """Everything that the page of one run says.

    Attributes:
        title: the run.
        summary: one sentence.
        verdict: whether the run kept its promise; a moved entry outweighs it.
        facts: names and values, printed as they are.
        curves: what was measured during training.
        held: the entries that were meant to stay.
        trained: the entries that were meant to move and did.
        outcome: what the run did.
        naive: what the naive loop did, where it was run.
        warnings: what the reader should know, a sentence each.
        metric: what heads are measured by; a share in 0..1.
        generator: the program and version that made the page.
        spent: where the time went, a bar for each part of the run.
        spent_note: how that was measured, in a sentence.
    """

    title: str
    summary: str
    verdict: bool
    facts: tuple[tuple[str, str], ...]
    curves: tuple[Curve, ...]
    held: tuple[HeldEntry, ...]
    trained: tuple[MovedEntry, ...]
    outcome: Outcome
    naive: Outcome | None
    warnings: tuple[str, ...] = ()
    metric: str = "accuracy"
    generator: str = ""
    spent: tuple[SpentBar, ...] = ()
    spent_note: str = ""


@dataclass(frozen=True)
class Verdict:
    """The verdict in words.

    Attributes:
        good: whether the promise was kept.
        claim: what was found, as one clause.
        evidence: how much was compared, as another.
    """

    good: bool
    claim: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.claim}: {self.evidence}"


def judge(page: RunPage) -> Verdict:
    """Say in words whether what was held moved.

    An entry that moved decides against the run, whatever ``page.verdict`` says: the page must not contradict its rows.

    Example:
        >>> page = RunPage("digits", "", True, (), (), (), (), Outcome("held", 0, (), ()), None)
        >>> str(judge(page))
        'Nothing was held: there is no entry to compare'
    """
    moved = {entry.path for entry in page.held if not entry.equal} | {row.path for row in page.outcome.moved}
    total = len({entry.path for entry in page.held} | moved)
    equal = f"{total - len(moved):,} of {figures.count(total, 'entry', 'entries')} equal to the bit"
    if moved:
        return Verdict(False, f"{len(moved):,} of {figures.count(total, 'held entry', 'held entries')} moved", equal)
    if not page.verdict:
        changed = [head.name for head in page.outcome.heads if not head.trained and head.logits_equal is False]
        what = f"the logits of {_join(changed)} changed" if changed else "the run failed another check"
        return Verdict(False, f"No held entry moved, but {what}", equal)
    if not total:
        return Verdict(True, "Nothing was held", "there is no entry to compare")
    claim = "Nothing that was held moved"
    alone = [head.name for head in page.outcome.heads if head.may_change]
    if alone and not any(entry.path.startswith("trunk.") for entry in page.held):
        claim += f", which was only the own weights of {_join(alone)}"
    return Verdict(True, claim, equal)


def render_run(page: RunPage) -> str:
    """Render the page of one run.

    Every name is escaped; the page loads nothing, and its content security policy forbids that it could. The same
    page gives the same text, byte for byte. Nothing is written, and matplotlib's settings stay as they were.

    Args:
        page: what the page says.

    Returns:
        The text of one HTML file, to be written as UTF-8.

    Raises:
        MissingExtra: jinja2 is not installed, or matplotlib is not and there are curves.
        ValueError: a curve has another number of epochs than of values.

    Example:
        >>> outcome = Outcome("with frostline", 1, (), ())
        >>> kept = HeldEntry("trunk.bn.running_mean", "buffer", "norm.mean", "9f3ac21b", "9f3ac21b", True)
        >>> text = render_run(RunPage("digits", "One head trained.", True, (), (), (kept,), (), outcome, None))
        >>> "Nothing that was held moved" in text
        True
    """
    runs = [page.outcome] if page.naive is None else [page.outcome, page.naive]
    tree = grow_tree(page.held, page.trained, page.outcome.moved)
    return render_page(
        "run.html.j2",
        parts=("charts", "tree", "run"),
        scripts=("tree",),
        page=page,
        verdict=judge(page),
        traces=draw_traces([entry.path for entry in page.held], runs),
        charts=draw_charts(page.curves, metric=page.metric),
        phase_styles=PHASE_STYLES,
        spent=draw_spent(page.spent),
        runs=runs,
        blocks=compare(runs, metric=page.metric),
        by_role=by_role,
        tree=tree,
        open_moved=tree.moved <= _MOST_OPENED,
        schema_version=SCHEMA_VERSION,
    )


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
