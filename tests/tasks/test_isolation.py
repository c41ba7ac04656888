"""The isolation report: equal means equal to the bit, and what changed is measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from frostline.state.changes import StateDiff
from frostline.state.snapshot import snapshot
from frostline.tasks import Isolation, IsolationReport, TaskModel, logits_of

STILL = StateDiff([], 5)


def report_after(
    model: TaskModel, change: Callable[[], object], probe: Tensor | list[Tensor], **options: object
) -> IsolationReport:
    isolation = Isolation(model, "new", probe, **options)
    change()
    return isolation.report(STILL)


# Logits


def test_logits_are_those_of_eval_mode_and_nothing_is_touched(
    two_heads: TaskModel, state_of: Callable[[nn.Module], object]
):
    two_heads.trunk[1].eval()
    batches = [torch.randn(4, 6), torch.randn(3, 6)]
    before, random = state_of(two_heads), torch.random.get_rng_state()
    found = logits_of(two_heads, batches)
    assert state_of(two_heads) == before
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(logits.requires_grad for logits in found.values())
    expected = [two_heads.eval()(batch, "old") for batch in batches]
    assert torch.equal(found["old"], torch.cat(expected))


def test_modes_come_back_when_the_model_fails(two_heads: TaskModel):
    two_heads.trunk[3].eval()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        logits_of(two_heads, [torch.zeros(2, 7)])
    assert [module.training for module in two_heads.trunk] == [True, True, True, False, True]
    assert two_heads.training


def test_a_model_without_parameters_has_logits_too():
    model = TaskModel(nn.Identity(), {"a": nn.Softmax(-1)})
    assert logits_of(model, [torch.zeros(1, 2)])["a"].tolist() == [[0.5, 0.5]]


# The report


def test_nothing_changed_is_equal(two_heads: TaskModel):
    report = report_after(two_heads, lambda: None, torch.randn(8, 6))
    assert report.isolated
    assert [(h.name, h.trained, h.logits_equal, h.logits_max_abs, h.predictions_changed) for h in report.heads] == [
        ("old", False, True, 0.0, 0),
        ("new", True, True, 0.0, 0),
    ]


def test_one_bit_in_one_weight_is_found(two_heads: TaskModel):
    """A tolerance of any kind, ``allclose`` for example, would let it pass."""
    weight = two_heads.heads["old"].weight

    def flip_the_lowest_bit() -> None:
        with torch.no_grad():
            weight.view(torch.int32)[0, 0] ^= 1

    before = logits_of(two_heads, [torch.ones(64, 6)])["old"]
    report = report_after(two_heads, flip_the_lowest_bit, torch.randn(64, 6))
    assert torch.allclose(before, logits_of(two_heads, [torch.ones(64, 6)])["old"])
    old = report.heads[0]
    assert not old.logits_equal
    assert 0 < old.logits_max_abs < 1e-6  # one unit in the last place of a weight below 1, times inputs below 6
    assert not report.isolated


def test_the_sign_of_zero_counts():
    """``torch.equal`` takes 0 and -0 for equal."""
    model = TaskModel(nn.Identity(), {"old": nn.Linear(1, 1), "new": nn.Linear(1, 1)})
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    report = report_after(model, model.heads["old"].weight.data.neg_, torch.tensor([[-0.0]]))
    assert report.heads[0].logits_equal  # 0 + -0 is 0
    minus = report_after(
        model, lambda: [p.data.fill_(-0.0) for p in model.heads["old"].parameters()], torch.tensor([[1.0]])
    )
    assert torch.equal(logits_of(model, [torch.ones(1, 1)])["old"], torch.zeros(1, 1))
    assert (minus.heads[0].logits_equal, minus.heads[0].logits_max_abs) == (False, 0.0)


def test_nan_and_infinity_that_stay_are_equal_and_written_as_json():
    """``torch.equal`` takes a NaN for unequal to itself, and their difference is a NaN that JSON has no word for."""
    model = TaskModel(nn.Identity(), {"old": nn.Linear(1, 3), "new": nn.Linear(1, 2)})
    with torch.no_grad():
        model.heads["old"].bias.copy_(torch.tensor([math.nan, math.inf, 0.5]))
    report = report_after(model, lambda: None, torch.ones(2, 1))
    assert (report.heads[0].logits_equal, report.heads[0].logits_max_abs) == (True, 0.0)
    json.dumps(report.to_json(), allow_nan=False)


def test_metrics_and_changed_predictions_are_counted(two_heads: TaskModel):
    head = two_heads.heads["old"]

    def always(number: int) -> None:
        nn.init.zeros_(head.weight)
        head.bias.data = torch.nn.functional.one_hot(torch.tensor(number), 3).float()

    always(0)
    labels = {"old": torch.tensor([0, 0, 0, 1, 2, 2, 2, 2])}
    report = report_after(two_heads, lambda: always(2), [torch.randn(5, 6), torch.randn(3, 6)], labels=labels)
    old, new = report.heads
    assert (old.metric_before, old.metric_after, old.predictions_changed) == (3 / 8, 4 / 8, 8)
    assert old.logits_max_abs == 1.0
    assert (new.metric_before, new.metric_after) == (None, None)


def test_a_held_entry_that_moved_is_not_isolated_whatever_the_logits_say(two_heads: TaskModel):
    isolation = Isolation(two_heads, "new", torch.randn(4, 6))
    before = snapshot(two_heads, "trunk")
    two_heads.trunk[1].num_batches_tracked += 1
    report = isolation.report(before.diff(two_heads))
    assert all(head.logits_equal for head in report.heads)
    assert not report.isolated
    assert (report.held, report.diff.paths) == (len(before), ["trunk.1.num_batches_tracked"])


def test_with_part_of_the_trunk_training_other_logits_may_change(two_heads: TaskModel):
    isolation = Isolation(two_heads, "new", torch.randn(4, 6))
    nn.init.zeros_(two_heads.trunk[4].weight)
    assert not isolation.report(STILL).isolated
    assert isolation.report(STILL, whole_trunk=False).isolated


def test_the_report_prints_and_is_json(two_heads: TaskModel):
    labels = {"old": torch.zeros(4, dtype=torch.long)}
    report = report_after(two_heads, lambda: None, torch.randn(4, 6), labels=labels)
    assert (
        str(report).splitlines()[0] == "trained 'new': 5 held entries equal to the bit; logits of old equal to the bit"
    )
    assert "<table" in report._repr_html_()
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (data["schema_version"], data["task"], data["isolated"], data["whole_trunk"]) == (1, "new", True, True)
    assert data["heads"][0]["metric_before"] == report.heads[0].metric_before


def test_an_unknown_task_is_refused(two_heads: TaskModel):
    with pytest.raises(ValueError, match="no such head"):
        Isolation(two_heads, "neither", torch.zeros(1, 6))
