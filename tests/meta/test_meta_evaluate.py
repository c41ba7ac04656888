"""Accuracies with intervals, against counting by hand; what changes the numbers stands beside them."""

from __future__ import annotations

import json
import math
import statistics

import pytest
import torch
from torch import Tensor, nn

from frostline.errors import MetaError, PolicyError
from frostline.meta import MAML, Prototypes, Tasks, digits, evaluate


def tasks(queries: int = 4, way: int = 3) -> Tasks:
    return Tasks(digits(), way=way, shot=2, queries=queries)


def net(way: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, way))


def test_rows_are_the_mean_over_tasks_with_1_96_standard_errors() -> None:
    learner, source = MAML(net(), inner_lr=0.2, steps=2), tasks()
    found = evaluate(learner, source, split="all", count=12, threads=2)
    assert [(row.policy, row.kind) for row in found.rows] == [("batch", "transductive"), ("support", "inductive")]
    for row in found.rows:
        shares: list[float] = []
        for index in range(12):
            task = source.task("all", index)
            scores = learner.adapt(task.support, seed=task.seed).predict(task.query.inputs, source=row.policy)
            shares.append((scores.argmax(1) == task.query.labels).double().mean().item())
        assert row.accuracy == pytest.approx(statistics.fmean(shares), abs=1e-6)
        assert row.interval == pytest.approx(1.96 * statistics.stdev(shares) / math.sqrt(12), abs=1e-6)
        assert row.tasks == 12
        assert row.skipped == 0


def test_each_number_of_queries_is_a_pass_of_its_own_on_the_same_support() -> None:
    learner = MAML(net(), inner_lr=0.2, steps=2)
    found = evaluate(learner, tasks(queries=6), split="all", count=10, queries=[1, 3, 6], policies=["batch", "support"])
    alone = evaluate(learner, tasks(queries=3), split="all", count=10, policies=["batch", "support"])
    by_size = {(row.policy, row.queries): row.accuracy for row in found.rows}
    assert len(by_size) == 6
    assert all(by_size[row.policy, 3] == row.accuracy for row in alone.rows)


def test_several_sizes_of_task_stand_side_by_side() -> None:
    found = evaluate(Prototypes(net()), [tasks(), tasks(way=5)], split="all", count=5, policies=["support"])
    assert [(row.way, row.shot) for row in found.rows] == [(3, 2), (5, 2)]


def test_the_learner_stays_and_the_order_of_tasks_changes_nothing() -> None:
    model = nn.Sequential(net(), nn.Dropout(0.5)).train()
    learner = MAML(model, inner_lr=0.2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = evaluate(learner, tasks(), split="all", count=8)
    # Random layers are off, so it says the same again.
    assert evaluate(learner, tasks(), split="all", count=8).rows == first.rows
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    later = evaluate(learner, tasks(), split="all", count=4, start=4)
    early = evaluate(learner, tasks(), split="all", count=4)
    for a, b, whole in zip(early.rows, later.rows, first.rows, strict=True):
        assert (a.accuracy + b.accuracy) / 2 == pytest.approx(whole.accuracy, abs=1e-9)


def test_what_changes_the_number_is_stored_beside_it_and_printed() -> None:
    found = evaluate(MAML(net(), inner_lr=0.2, steps=2), tasks(), split="all", count=5, steps=7)
    told = json.loads(json.dumps(found.to_json()))
    conditions = told["conditions"]
    assert conditions["steps_at_test"] == 7
    assert conditions["count"] == 5
    assert conditions["enough_tasks"] is False
    assert conditions["learner"]["steps"] == 2
    assert conditions["learner"]["inner_lr"] == 0.2
    assert conditions["split"] == "all"
    assert conditions["tasks"][0]["seed"] == 0
    assert conditions["tasks"][0]["queries"] == 4
    text = str(found)
    assert "steps_at_test: 7" in text
    assert "±" in text
    assert "transductive" in text


def test_a_model_without_batch_norm_needs_no_policy() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    (row,) = evaluate(MAML(model, inner_lr=0.2), tasks(), split="all", count=4).rows
    assert (row.policy, row.kind) == ("none needed", "inductive")


def test_an_inner_loop_that_blows_up_is_counted_and_does_not_stop_the_rest() -> None:
    class Cubed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) ** 3

    learner = MAML(Cubed(), inner_lr=1e4, steps=5)
    found = evaluate(learner, tasks(), split="all", count=4, policies=["batch", "frozen"])
    assert all(row.skipped == 4 and row.tasks == 0 and math.isnan(row.accuracy) and row.why for row in found.rows)
    assert "blew up" in str(found)
    assert '"nan"' in json.dumps(found.to_json())


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"count": 1}, MetaError, "no interval"),
        ({"queries": [9]}, MetaError, "the tasks have 4"),
        ({"queries": []}, MetaError, "the tasks have 4"),
        ({"policies": ["suport"]}, PolicyError, "did you mean 'support'"),
        ({"steps": -1}, MetaError, "0 or more"),
        ({"split": "tset"}, MetaError, "tset"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(options: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        evaluate(MAML(net(), inner_lr=0.2), tasks(), **{"split": "all", "count": 4, **options})  # type: ignore[arg-type]
