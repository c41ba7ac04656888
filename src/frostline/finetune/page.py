"""A finished run as the values that its HTML page is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import frostline
from frostline.errors import name_some
from frostline.finetune.metrics import EpochRow
from frostline.report import Curve, HeadOutcome, HeldEntry, MovedEntry, Outcome, RunPage, SpentBar, sum_spent
from frostline.state.changes import StateDiff
from frostline.state.snapshot import Snapshot
from frostline.tasks.isolation import IsolationReport


def run_page(
    *,
    title: str,
    summary: str,
    facts: tuple[tuple[str, str], ...],
    warnings: tuple[str, ...],
    rows: Sequence[EpochRow],
    reference: Snapshot,
    certificate: Mapping[str, Any],
    trained: StateDiff,
    report: IsolationReport,
    naive: IsolationReport | None,
    spent: tuple[SpentBar, ...] = (),
    spent_note: str = "",
) -> RunPage:
    """Gather what a page says.

    Args:
        title: the run.
        summary: one sentence.
        facts: names and values.
        warnings: a sentence each.
        rows: all epochs.
        reference: what was held, with kinds and roles.
        certificate: as written to ``certificate.json``.
        trained: what moved because it was meant to.
        report: the heads, before and after.
        naive: the same for the naive loop, where it was run.
        spent: from :func:`spent_bars`.
        spent_note: how it was measured.
    """
    held = tuple(
        HeldEntry(
            path, reference[path].kind, reference[path].role, _said(row["before"]), _said(row["after"]), row["equal"]
        )
        for path, row in certificate["held"].items()
    )
    last = _last_accuracy(rows, report.task)
    last_naive = _last_accuracy(rows, f"{report.task} (naive)")
    return RunPage(
        title=title,
        summary=summary,
        verdict=report.isolated,
        facts=facts,
        curves=_curves(rows),
        held=held,
        trained=_moved(trained),
        outcome=_outcome("with frostline", len(held), report, last, whole_trunk=report.whole_trunk),
        # It is judged by what was meant to stay, as the run is.
        naive=None
        if naive is None
        else _outcome("naive loop", naive.held, naive, last_naive, whole_trunk=report.whole_trunk),
        warnings=warnings,
        generator=f"frostline {frostline.__version__}",
        spent=spent,
        spent_note=spent_note,
    )


def spent_bars(rows: Sequence[EpochRow], outside: Mapping[str, float], detail: str = "") -> tuple[SpentBar, ...]:
    """Where the time went: the first epoch of each phase, its later epochs, and what was outside of them.

    The first epoch stands by itself, because what it computes may serve the later ones.

    Args:
        rows: all epochs.
        outside: name to the seconds spent outside of the epochs.
        detail: what is said of these.

    Example:
        >>> spent = {"loading": 1.0, "head": 2.0, "saving": 0.5}
        >>> row = EpochRow("parity", 1, 1, loss=0.1, accuracy=0.9, seconds=3.25, spent=spent)
        >>> [(bar.title, bar.detail, bar.spent["other"]) for bar in spent_bars([row], {})]
        [('parity', 'first epoch', 0.25)]
    """
    bars: list[SpentBar] = []
    for phase in dict.fromkeys(row.phase for row in rows):
        own = [row for row in rows if row.phase == phase]
        for part in (own[:1], own[1:]):
            if part:
                bars.append(SpentBar(phase, _which(part), sum_spent([time_spent(row) for row in part]), len(part)))
    if outside:
        bars.append(SpentBar("outside of the epochs", detail, sum_spent([outside])))
    return tuple(bars)


def time_spent(row: EpochRow) -> dict[str, float]:
    """What an epoch spent its time on, with what was not told apart as ``other``."""
    within = sum(seconds for name, seconds in row.spent.items() if name != "saving")
    return {**row.spent, "other": max(0.0, row.seconds - within)}


def _which(rows: Sequence[EpochRow]) -> str:
    first, last = rows[0].epoch, rows[-1].epoch
    if first == 1:
        return "first epoch"
    return f"epoch {first}" if first == last else f"epochs {first} to {last}"


def _outcome(title: str, held: int, report: IsolationReport, accuracy: float | None, *, whole_trunk: bool) -> Outcome:
    heads = tuple(
        HeadOutcome(
            name=head.name,
            trained=head.trained,
            logits_equal=head.logits_equal,
            logits_max_abs=head.logits_max_abs,
            metric_before=head.metric_before,
            # The trained head may have data of its own, which the probe has no labels for.
            metric_after=accuracy if head.trained else head.metric_after,
            predictions_changed=head.predictions_changed,
            may_change=not whole_trunk and not head.trained,
        )
        for head in report.heads
    )
    return Outcome(title, held, _moved(report.diff), heads)


def _last_accuracy(rows: Sequence[EpochRow], phase: str) -> float | None:
    return next((row.accuracy for row in reversed(rows) if row.phase == phase), None)


def _moved(diff: StateDiff) -> tuple[MovedEntry, ...]:
    return tuple(MovedEntry(row.path, row.kind, row.role, row.max_abs, row.mean_abs) for row in diff.moved)


def _curves(rows: Sequence[EpochRow]) -> tuple[Curve, ...]:
    curves: list[Curve] = []
    for phase in dict.fromkeys(row.phase for row in rows):
        own = [row for row in rows if row.phase == phase]
        epochs = tuple(float(row.epoch) for row in own)
        curves.append(Curve("loss", phase, epochs, tuple(row.loss for row in own)))
        curves.append(Curve("accuracy", phase, epochs, tuple(row.accuracy for row in own), unit="%"))
    return (*curves, *_rates(rows))


def _rates(rows: Sequence[EpochRow]) -> list[Curve]:
    """The learning rate of each group in the last phase; groups that go alike are one line."""
    phases = [row.phase for row in rows if row.rates and not row.phase.endswith("(naive)")]
    own = [row for row in rows if phases and row.phase == phases[-1]]
    alike: dict[tuple[float, ...], list[str]] = {}
    for group in own[-1].rates if own else ():
        values = tuple(value for row in own for value in row.rates.get(group, ()))
        title = group.removesuffix(", no decay")  # its rate is that of the rest of the layer
        if title not in alike.setdefault(values, []):
            alike[values].append(title)
    epochs = tuple(
        row.epoch - 1 + number / len(values)
        for row in own
        for values in [next(iter(row.rates.values()), ())]
        for number in range(len(values))
    )
    return [
        Curve("learning rate", name_some(groups, most=2), epochs, values)
        for values, groups in alike.items()
        if len(values) == len(epochs)
    ]


def _said(value: object) -> str:
    if value is None:
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
