"""What a run did to the state that was meant to stay and to every head, and two such runs side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from frostline.report import figures
from frostline.report.module_tree import MovedEntry


@dataclass(frozen=True)
class HeadOutcome:
    """What became of one head.

    Attributes:
        name: its name.
        trained: whether it was meant to train.
        logits_equal: whether its logits on the probe are equal to the bit; ``None`` where not measured.
        logits_max_abs: their largest absolute difference.
        metric_before: the metric before the run, in 0..1.
        metric_after: the metric after it.
        predictions_changed: how many predictions on the probe differ.
        may_change: whether it may give other logits although its weights are held, for the trunk before it trained.
    """

    name: str
    trained: bool
    logits_equal: bool | None
    logits_max_abs: float | None
    metric_before: float | None
    metric_after: float | None
    predictions_changed: int | None = None
    may_change: bool = False

    @property
    def must_stay(self) -> bool:
        """Whether another logit than before is a fault."""
        return not self.trained and not self.may_change


@dataclass(frozen=True)
class Outcome:
    """What one way of training did.

    Attributes:
        title: what it is called.
        held: how many entries were meant to stay.
        moved: those of them that moved.
        heads: a row for each head.
    """

    title: str
    held: int
    moved: tuple[MovedEntry, ...]
    heads: tuple[HeadOutcome, ...]


@dataclass(frozen=True)
class Cell:
    """One measurement as printed, and whether it is ``good``, ``bad`` or neither (empty)."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """One measurement, with a cell for each run."""

    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Block:
    """The measurements of one subject: the held state, or a head. ``tag`` says what of it was held."""

    title: str
    rows: tuple[Row, ...]
    is_head: bool = False
    tag: str = ""


@dataclass(frozen=True)
class RoleRow:
    """The moved entries of one role: how many, and the largest difference among them."""

    role: str
    entries: int
    max_abs: float | None


def compare(runs: Sequence[Outcome], *, metric: str) -> tuple[Block, ...]:
    """Lay the measurements of several runs out side by side.

    Args:
        runs: the runs, one column each; heads belong together by name.
        metric: what the heads were measured by.

    Returns:
        The held state first, then the heads in the order of the first run. A measurement that no run has is left out.

    Example:
        >>> head = HeadOutcome("digit", False, True, 0.0, 0.98, 0.98, 0)
        >>> for row in compare([Outcome("held", 40, (), (head,))], metric="accuracy")[1].rows:
        ...     print(row.label, "|", row.cells[0].text)
        Accuracy before | 98.00%
        Accuracy after | 98.00%
        Change, in points | 0
        Logits equal to the bit | yes
        Largest logit difference | 0
        Predictions changed | 0
    """
    state = Block(
        "State meant to stay",
        (
            Row("Entries", tuple(Cell(figures.count(run.held)) for run in runs)),
            Row("of these moved", tuple(_moved(run) for run in runs)),
        ),
    )
    names = list(dict.fromkeys(head.name for run in runs for head in run.heads))
    return (state, *(_head_block(name, runs, metric) for name in names))


def by_role(moved: Sequence[MovedEntry]) -> tuple[RoleRow, ...]:
    """Count moved entries by role, in the order in which the roles come.

    Example:
        >>> by_role([MovedEntry("bn.running_mean", "buffer", "norm.mean", 0.5, 0.1)])
        (RoleRow(role='norm.mean', entries=1, max_abs=0.5),)
    """
    groups: dict[str, list[MovedEntry]] = {}
    for entry in moved:
        groups.setdefault(entry.role, []).append(entry)
    return tuple(
        RoleRow(role, len(rows), max((r.max_abs for r in rows if r.max_abs is not None), default=None))
        for role, rows in groups.items()
    )


def _head_block(name: str, runs: Sequence[Outcome], metric: str) -> Block:
    heads = [next((head for head in run.heads if head.name == name), None) for run in runs]
    word = metric[:1].upper() + metric[1:]
    measures: tuple[tuple[str, Callable[[HeadOutcome], Cell]], ...] = (
        (f"{word} before", lambda head: Cell(figures.percent(head.metric_before))),
        (f"{word} after", lambda head: Cell(figures.percent(head.metric_after))),
        ("Change, in points", _change),
        ("Logits equal to the bit", _logits_equal),
        ("Largest logit difference", lambda head: Cell(figures.size(head.logits_max_abs))),
        ("Predictions changed", _predictions),
    )
    rows = tuple(
        Row(label, tuple(Cell(figures.ABSENT) if head is None else measure(head) for head in heads))
        for label, measure in measures
    )
    known = tuple(row for row in rows if any(cell.text != figures.ABSENT for cell in row.cells))
    first = next(head for head in heads if head is not None)
    tag = "trained" if first.trained else "held" if first.must_stay else "its own weights held"
    return Block(name, known, is_head=True, tag=tag)


def _moved(run: Outcome) -> Cell:
    return Cell(figures.count(len(run.moved)), "bad" if run.moved else "good")


def _change(head: HeadOutcome) -> Cell:
    text = figures.points(head.metric_before, head.metric_after)
    # What a trained head does to its metric is no fault; a held head has no business changing at all.
    return Cell(text, "bad" if head.must_stay and text not in {"0", figures.ABSENT} else "")


def _logits_equal(head: HeadOutcome) -> Cell:
    if head.logits_equal is None:
        return Cell(figures.ABSENT)
    tone = "" if not head.must_stay else "good" if head.logits_equal else "bad"
    return Cell("yes" if head.logits_equal else "no", tone)


def _predictions(head: HeadOutcome) -> Cell:
    tone = "bad" if head.predictions_changed and head.must_stay else ""
    return Cell(figures.count(head.predictions_changed), tone)
