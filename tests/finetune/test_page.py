"""What a page says is what the certificate and the rows say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from frostline.finetune.certificate import certify
from frostline.finetune.metrics import EpochRow
from frostline.finetune.page import run_page, spent_bars, time_spent
from frostline.report import RunPage
from frostline.state.changes import StateDiff
from frostline.state.held_rows import held_rows
from frostline.state.snapshot import snapshot
from frostline.tasks import Isolation, TaskModel, train_task

ROWS = [
    EpochRow("new", 1, 2, loss=0.7, accuracy=0.5, seconds=1.0),
    EpochRow("new", 2, 2, loss=0.4, accuracy=0.75, seconds=1.0),
    EpochRow("new (naive)", 1, 1, loss=0.6, accuracy=0.25, seconds=1.0),
]


@pytest.fixture
def made() -> tuple[RunPage, dict[str, Any]]:
    torch.manual_seed(0)
    model = TaskModel(nn.BatchNorm1d(2), {"old": nn.Linear(2, 2), "new": nn.Linear(2, 2)})
    whole = snapshot(model, values=True)
    probe, labels = torch.randn(4, 2), {"old": torch.tensor([0, 1, 0, 1])}
    with train_task(model, "new", probe=probe, labels=labels) as training:
        with torch.no_grad():
            model.heads["new"].bias += 0.5
        reference = training.hold.reference
        rows = held_rows(reference, model)
    trained = StateDiff([row for row in whole.diff(model).moved if row.path not in reference], 0)
    naive = Isolation(model, "new", probe, labels)
    before = snapshot(model, "trunk", values=True)
    model.train().trunk(torch.ones(4, 2))
    page = run_page(
        title="a title",
        summary="one sentence",
        facts=(("seed", "0"),),
        warnings=("be careful",),
        rows=ROWS,
        reference=reference,
        certificate=certify(rows, training.report),
        trained=trained,
        report=training.report,
        naive=naive.report(before.diff(model)),
    )
    return page, rows


def test_every_held_entry_is_on_the_page_as_in_the_certificate(made: tuple[RunPage, dict[str, Any]]):
    page, rows = made
    held = {entry.path: entry for entry in page.held}
    assert held.keys() == rows.keys()
    mean = held["trunk.running_mean"]
    assert (mean.kind, mean.role) == ("buffer", "norm.mean")
    assert (mean.before, mean.after, mean.equal) == (rows["trunk.running_mean"]["before"],) * 2 + (True,)
    assert (held["trunk.training"].before, held["trunk.weight.requires_grad"].before) == ("no", "no")
    assert held["trunk.momentum"].before == "0.1"


def test_the_verdict_and_both_outcomes(made: tuple[RunPage, dict[str, Any]]):
    page, rows = made
    assert page.verdict
    assert (page.outcome.held, page.outcome.moved) == (len(rows), ())
    assert [entry.path for entry in page.trained] == ["heads.new.bias"]
    assert page.trained[0].max_abs == pytest.approx(0.5)
    assert page.naive is not None
    assert {entry.role for entry in page.naive.moved} == {"norm.mean", "norm.var", "norm.count"}


def test_the_trained_head_has_the_accuracy_of_its_own_data(made: tuple[RunPage, dict[str, Any]]):
    """The probe has no labels for it; the last epoch of its own phase has."""
    page, _ = made
    assert page.naive is not None
    old, new = page.outcome.heads
    assert (new.trained, new.metric_before, new.metric_after) == (True, None, 0.75)
    assert page.naive.heads[1].metric_after == 0.25
    assert old.metric_before == old.metric_after is not None


def test_curves_are_the_rows_phase_by_phase(made: tuple[RunPage, dict[str, Any]]):
    page, _ = made
    assert [(curve.name, curve.phase, curve.epochs, curve.values) for curve in page.curves] == [
        ("loss", "new", (1.0, 2.0), (0.7, 0.4)),
        ("accuracy", "new", (1.0, 2.0), (0.5, 0.75)),
        ("loss", "new (naive)", (1.0,), (0.6,)),
        ("accuracy", "new (naive)", (1.0,), (0.25,)),
    ]


def epoch(phase: str, number: int, **spent: float) -> EpochRow:
    return EpochRow(phase, number, 4, loss=0.5, accuracy=0.5, seconds=10.0, spent=spent)


def test_the_first_epoch_and_the_later_ones_have_a_bar_each():
    rows = [
        epoch("new", 1, loading=1.0, prefix=8.0, head=1.0, saving=2.0),
        epoch("new", 2, loading=2.0, head=3.0, saving=1.0),
        epoch("new", 3, loading=4.0, head=6.0, saving=1.0),
        epoch("new (naive)", 1, loading=1.0, head=9.0),
    ]
    bars = spent_bars(rows, {"proof": 0.5}, "since the run was resumed")
    assert [(bar.title, bar.detail, bar.epochs) for bar in bars] == [
        ("new", "first epoch", 1),
        ("new", "epochs 2 to 3", 2),
        ("new (naive)", "first epoch", 1),
        ("outside of the epochs", "since the run was resumed", 0),
    ]
    first, later, naive, outside = (bar.spent for bar in bars)
    assert first == {"loading": 1.0, "prefix": 8.0, "head": 1.0, "saving": 2.0, "other": 0.0}
    assert later == {"loading": 6.0, "head": 9.0, "saving": 2.0, "other": 5.0}
    assert naive == {"loading": 1.0, "head": 9.0, "other": 0.0}
    assert outside == {"proof": 0.5}
    assert sum(sum(bar.spent.values()) for bar in bars[:3]) == sum(row.seconds for row in rows) + 4.0


def test_bars_of_a_run_that_was_resumed_say_which_epochs():
    assert [bar.detail for bar in spent_bars([epoch("new", 3, head=1.0)], {})] == ["epoch 3"]
    assert [bar.detail for bar in spent_bars([epoch("new", 1), epoch("new", 2)], {})] == ["first epoch", "epoch 2"]
    assert spent_bars([], {}) == ()


def test_a_row_of_an_older_run_is_not_told_apart():
    """Its JSON has no such field."""
    told = {"phase": "new", "epoch": 1, "epochs": 1, "loss": 0.5, "accuracy": 0.5, "seconds": 3.0, "rates": {}}
    row = EpochRow(**told)
    assert row.to_json() == {**told, "spent": {}}
    assert time_spent(row) == {"other": 3.0}


def test_the_rest_is_passed_on(made: tuple[RunPage, dict[str, Any]]):
    page, _ = made
    assert (page.title, page.summary, page.facts, page.warnings) == (
        "a title",
        "one sentence",
        (("seed", "0"),),
        ("be careful",),
    )
    assert page.generator.startswith("frostline ")
