"""A finished run as the values that its HTML page is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import frostline
from frostline.errors import name_some
from frostline.finetune.metrics import EpochRow
from frostline.report import Curve, HeadOutcome, HeldEntry, MovedEntry, Outcome, RunPage
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
        outcome=_outcome("with frostline", len(held), report, last),
        naive=None if naive is None else _outcome("naive loop", naive.held, naive, last_naive),
        warnings=warnings,
        generator=f"frostline {frostline.__version__}",
    )


def _outcome(title: str, held: int, report: IsolationReport, accuracy: float | None) -> Outcome:
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
