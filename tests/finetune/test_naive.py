"""The naive twin: what users write, on a copy, and what it does to the rest."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from frostline.finetune import FinetuneConfig
from frostline.finetune.loop import make_accelerator
from frostline.finetune.naive import train_naively
from frostline.finetune.problem import Phase
from frostline.state.snapshot import Snapshot, snapshot
from frostline.tasks import IsolationReport, TaskModel, train_task

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = FinetuneConfig(batch_size=8, workers=0, device="cpu")
Outcome = tuple[dict[str, dict[str, Any]], IsolationReport]


@pytest.fixture
def model() -> TaskModel:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 5))
    return TaskModel(trunk, {"old": nn.Linear(5, 3), "new": nn.Linear(5, 2)})


def data(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 4, generator=generator) + 3, torch.randint(0, 2, (count,), generator=generator)


def train(model: TaskModel, recorder: Any, trunk: tuple[str, ...] = ("*",)) -> tuple[Snapshot, Outcome, list[Any]]:
    phase = Phase("new", 2, 0.05, trunk, TensorDataset(*data(40)), TensorDataset(*data(10)))
    rows: list[Any] = []
    with train_task(model, "new", trunk=trunk) as training:
        held = training.hold.reference
    with torch.random.fork_rng(devices=[]):
        outcome = train_naively(
            make_accelerator(CONFIG),
            model,
            phase,
            CONFIG,
            recorder,
            number=1,
            held=held,
            probe=[data(10)[0]],
            labels={"old": torch.zeros(10, dtype=torch.long)},
            after_epoch=rows.append,
        )
    return held, outcome, rows


def test_statistics_move_and_parameters_do_not(model: TaskModel, recorder: Any):
    held, (rows, report), _ = train(model, recorder)
    moved = {path for path, row in rows.items() if not row["equal"]}
    assert moved == {"trunk.1.running_mean", "trunk.1.running_var", "trunk.1.num_batches_tracked"}
    assert set(report.diff.paths) == moved
    assert {row.role for row in report.diff.moved} == {"norm.mean", "norm.var", "norm.count"}
    assert all(row.max_abs is not None and row.max_abs > 0 for row in report.diff.moved)
    # Judged by all tensors that were to stay, and by no flag: those are what it is naive about.
    assert rows.keys() == {path for path, record in held.items() if record.kind in {"parameter", "buffer"}}
    assert report.held == len(rows)


def test_the_other_head_answers_otherwise_although_its_weights_stayed(model: TaskModel, recorder: Any):
    _, (_, report), _ = train(model, recorder)
    old = report.heads[0]
    assert (old.name, old.logits_equal, report.isolated) == ("old", False, False)
    assert old.logits_max_abs > 0
    assert old.metric_before is not None


def test_it_is_done_on_a_copy(model: TaskModel, recorder: Any):
    before = snapshot(model)
    train(model, recorder)
    assert not before.diff(model)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_part_of_the_trunk_is_naive_about_that_part(model: TaskModel, recorder: Any):
    _, (rows, _), _ = train(model, recorder, trunk=("1",))
    assert {path for path in rows if path.startswith("trunk")} == {
        f"trunk.1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    still = {path for path, row in rows.items() if row["equal"]}
    assert still == {"trunk.1.weight", "trunk.1.bias", "heads.old.weight", "heads.old.bias"}


def test_rows_are_named_after_it(model: TaskModel, recorder: Any):
    _, _, rows = train(model, recorder)
    assert [(row.phase, row.epoch) for row in rows] == [("new (naive)", 1), ("new (naive)", 2)]
    assert recorder.rows == rows
