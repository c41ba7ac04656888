"""A run with several tasks as the values that its HTML page is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

import frostline
from frostline.errors import name_some
from frostline.fast.heads_result import HeadsResult
from frostline.finetune.label_file import TaskData
from frostline.finetune.metrics import EpochRow
from frostline.report import Curve, HeadOutcome, HeldEntry, MovedEntry, Outcome, RunPage
from frostline.state import names
from frostline.state.snapshot import Snapshot, snapshot

# More lines than these in one chart cannot be told apart; the table has all heads.
MOST_DRAWN = 12


def tasks_page(
    *,
    title: str,
    facts: tuple[tuple[str, str], ...],
    warnings: tuple[str, ...],
    tasks: Mapping[str, TaskData],
    heads: Mapping[str, nn.Linear],
    trained: HeadsResult,
    before: Snapshot,
    certificate: Mapping[str, Any],
    rows: Sequence[EpochRow],
) -> RunPage:
    """Gather what a page says.

    Args:
        title: the run.
        facts: names and values.
        warnings: a sentence each.
        tasks: name to its classes and samples.
        heads: name to the head as it began.
        trained: what became of the heads.
        before: what the trunk was.
        certificate: as written to ``certificate.json``.
        rows: all epochs of all heads.
    """
    held = tuple(
        HeldEntry(path, record.kind, record.role, _said(row["before"]), _said(row["after"]), row["equal"])
        for (path, row), record in zip(certificate["held"].items(), before.values(), strict=True)
    )
    trunk = trained.isolation.trunk
    moved = () if trunk is None else _moved("trunk", trunk.moved)
    diverged = [f"the head {row.name!r} diverged: {row.diverged}" for row in trained.rows if row.diverged]
    alone = [f"the head {head.name!r} was moved by another one" for head in trained.isolation.heads if not head.alone]
    spared = len(tasks) - MOST_DRAWN
    cut = [f"the curves are those of the first {MOST_DRAWN} heads; metrics.jsonl has all"] if spared > 0 else []
    learned = [f"{name} ({_some(data.classes)})" for name, data in list(tasks.items())[:MOST_DRAWN]]
    return RunPage(
        title=title,
        summary=(
            f"{len(tasks)} heads trained side by side on the features of one trunk, each as if it were alone; "
            if len(tasks) > 1
            else "one head trained on the features of a trunk; "
        )
        + "all of the trunk was held.",
        verdict=trained.isolation.isolated,
        facts=(("tasks", ", ".join(learned)), *_figures(tasks, trained), *facts),
        curves=_curves(rows, list(tasks)[:MOST_DRAWN]),
        held=held,
        trained=tuple(
            entry
            for name, head in heads.items()
            for entry in _moved(
                names.join("heads", name),
                snapshot(head, values=True).diff(trained.heads[name].cpu()).where("parameter", "buffer").moved,
            )
        ),
        outcome=Outcome(
            "with frostline",
            len(held),
            moved,
            tuple(HeadOutcome(row.name, True, None, None, None, row.accuracy) for row in trained.rows),
        ),
        naive=None,
        warnings=(*warnings, *diverged, *alone, *cut),
        generator=f"frostline {frostline.__version__}",
    )


def _figures(tasks: Mapping[str, TaskData], trained: HeadsResult) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    for row in trained.rows[:MOST_DRAWN]:
        data = tasks[row.name]
        images = f"{len(data.train):,} images to train, {len(data.val):,} to validate, {len(data.classes)} classes"
        largest = f"the largest class has {data.largest_class:.1%} of the validation"
        ended = "stopped early" if row.stopped_early else "diverged" if row.diverged else "all epochs"
        told.append((f"head {row.name}", f"{images}; {largest}; epoch {row.epoch} of {row.epochs}, {ended}"))
    rest = [row.name for row in trained.rows[MOST_DRAWN:]]
    return [*told, ("further heads", name_some(rest))] if rest else told


def _curves(rows: Sequence[EpochRow], drawn: Sequence[str]) -> tuple[Curve, ...]:
    curves: list[Curve] = []
    for name in drawn:
        own = [row for row in rows if row.phase == name]
        epochs = tuple(float(row.epoch) for row in own)
        curves.append(Curve("loss", name, epochs, tuple(row.loss for row in own)))
        curves.append(Curve("accuracy", name, epochs, tuple(row.accuracy for row in own), unit="%"))
    return tuple(curves)


def _moved(owner: str, rows: Sequence[Any]) -> tuple[MovedEntry, ...]:
    return tuple(MovedEntry(names.join(owner, row.path), row.kind, row.role, row.max_abs, row.mean_abs) for row in rows)


def _said(value: object) -> str:
    if value is None:
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:3]) + (" ..." if len(classes) > 3 else "")
