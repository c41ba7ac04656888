"""The account of many heads: which is best, and how it reads."""

from __future__ import annotations

import json

from torch import nn

from frostline.fast.heads_isolation import HeadsIsolation
from frostline.fast.heads_result import HeadRow, HeadsResult


def row(name: str, accuracy: float | None, val_loss: float | None, diverged: str = "") -> HeadRow:
    return HeadRow(name, accuracy, 0.5, val_loss, 3, 3, 5, False, diverged, 0.1, 0.0, 1.0)


def result(*rows: HeadRow) -> HeadsResult:
    return HeadsResult(rows, {each.name: nn.Identity() for each in rows}, HeadsIsolation((), None), (), 0.0, 1.0)


def test_the_best_head_is_the_most_accurate_and_then_the_one_with_the_least_loss():
    best = result(row("a", 0.9, 0.3), row("b", 0.95, 0.4), row("c", 0.95, 0.2), row("d", 0.99, 0.1, "diverged")).best
    assert best is not None
    assert best.name == "c"
    by_loss = result(row("a", None, 0.3), row("b", None, 0.2)).best
    assert by_loss is not None
    assert by_loss.name == "b"
    assert result(row("a", None, None)).best is None


def test_figures_that_are_no_numbers_are_words_in_json():
    data = result(row("a", 0.9, float("inf"))).to_json()
    assert json.loads(json.dumps(data, allow_nan=False))["rows"][0]["val_loss"] == "inf"


def test_what_there_is_not_is_a_dash():
    lines = str(result(row("a", None, None, "the loss became nan in epoch 4, step 1"))).splitlines()
    assert lines[2].split()[:4] == ["a", "–", "0.5", "–"]
    assert lines[2].split()[-2] == "diverged"
    assert lines[3] == "'a' diverged: the loss became nan in epoch 4, step 1"
