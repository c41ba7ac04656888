"""The certificate of a run with several tasks, and its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from frostline.fast.heads_isolation import HeadIsolation, HeadsIsolation
from frostline.fast.heads_result import HeadRow, HeadsResult
from frostline.finetune.label_file import TaskData
from frostline.finetune.tasks_result import TasksResult, certify_tasks

DATA = TaskData(("ant", "bee"), ((Path("a"), 0), (Path("b"), 1)), ((Path("c"), 0), (Path("d"), 1), (Path("e"), 1)))


def result(*, moved: bool = False, alone: bool = True, diverged: str = "") -> TasksResult:
    row = HeadRow("kind", 0.5, 0.7, float("inf"), 2, 1, 2, False, diverged, 0.1, 0.0, 1.0)
    isolation = HeadsIsolation((HeadIsolation("kind", (), alone, True, {}),), None)
    trained = HeadsResult((row,), {}, isolation, (), 0.0, 1.0)
    rows: dict[str, dict[str, Any]] = {"weight": {"before": "a", "after": "b" if moved else "a", "equal": not moved}}
    certificate = certify_tasks(rows, {"kind": DATA}, trained)
    return TasksResult(Path("run"), {"kind": DATA}, 5, trained, certificate, None, {"heads": 1.0})


def test_the_certificate_says_what_was_held_and_what_was_learned():
    certificate = result().certificate
    assert certificate["held"] == {"trunk.weight": {"before": "a", "after": "a", "equal": True}}
    assert certificate["moved"] == []
    told = certificate["tasks"]["kind"]
    assert (told["classes"], told["train"], told["val"], told["largest_class"]) == (["ant", "bee"], 2, 3, 2 / 3)
    assert told["val_loss"] == "inf"
    json.dumps(certificate, allow_nan=False)


@pytest.mark.parametrize(("moved", "alone"), [(True, True), (False, False), (False, True)])
def test_both_the_trunk_and_the_heads_count(moved: bool, alone: bool):
    given = result(moved=moved, alone=alone)
    assert given.isolated is given.to_json()["isolated"] is (not moved and alone)
    assert given.certificate["moved"] == (["trunk.weight"] if moved else [])


def test_heads_that_diverged_are_named_in_json():
    data = result(diverged="the loss became nan in epoch 1, step 1").to_json()
    assert data["diverged"] == {"kind": "the loss became nan in epoch 1, step 1"}
    assert data["report"] is None
