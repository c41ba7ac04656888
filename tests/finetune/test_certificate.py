"""The certificate: every held entry before and after, and what the heads say."""

from __future__ import annotations

import json

import torch
from torch import nn

from frostline.finetune.certificate import certify, held_rows, tensors_of
from frostline.state.snapshot import snapshot
from frostline.tasks import TaskModel, train_task


def test_rows_are_digests_of_tensors_and_values_of_flags():
    layer = nn.BatchNorm1d(2)
    before = snapshot(layer)
    rows = held_rows(before, layer)
    assert list(rows) == list(before)
    assert all(row["equal"] and row["before"] == row["after"] for row in rows.values())
    assert len(rows["running_mean"]["before"]) == 32
    assert rows["weight.requires_grad"] == {"before": True, "after": True, "equal": True}
    assert rows["training"] == {"before": True, "after": True, "equal": True}
    assert rows["momentum"] == {"before": 0.1, "after": 0.1, "equal": True}


def test_every_kind_of_change_is_found():
    layer = nn.BatchNorm1d(2)
    before = snapshot(layer)
    layer.eval()
    layer.momentum = 0.2
    layer.weight.requires_grad_(False)
    layer.running_mean[0] = -0.0  # equal to 0 as a number
    layer.bias = nn.Parameter(layer.bias.detach().double())
    del layer.running_var
    rows = held_rows(before, layer)
    moved = {path for path, row in rows.items() if not row["equal"]}
    assert moved >= {"training", "momentum", "weight.requires_grad", "running_mean", "bias", "running_var"}
    assert "weight" not in moved
    assert rows["running_var"]["after"] is None
    assert rows["training"] == {"before": True, "after": False, "equal": False}


def test_one_value_as_another_type_is_not_the_same():
    """The digest covers dtype and shape; so zeros of either are told apart."""
    module = nn.Module()
    module.register_buffer("a", torch.zeros(4))
    before = snapshot(module)
    module.a = torch.zeros(2, 2)
    assert not held_rows(before, module)["a"]["equal"]


def test_the_naive_loop_is_judged_by_tensors_alone():
    part = tensors_of(snapshot(nn.BatchNorm1d(2)))
    assert sorted(part) == ["bias", "num_batches_tracked", "running_mean", "running_var", "weight"]
    assert part.partial


def test_the_certificate_has_the_fields_of_the_design():
    model = TaskModel(nn.Linear(2, 2), {"old": nn.Linear(2, 2), "new": nn.Linear(2, 2)})
    with train_task(model, "new", probe=torch.ones(2, 2), labels={"old": torch.tensor([0, 1])}) as training:
        reference = training.hold.reference
        rows = held_rows(reference, model)
    spoilt = {**rows, "trunk.weight": {"before": "a", "after": "b", "equal": False}}
    certificate = certify(rows, training.report, (spoilt, training.report))
    assert certificate == json.loads(json.dumps(certificate, allow_nan=False))
    assert list(certificate) == ["schema_version", "held", "moved", "probe", "naive"]
    assert certificate["held"] == rows
    assert certificate["moved"] == []
    assert certificate["naive"]["moved"] == ["trunk.weight"]
    assert certificate["naive"].keys() == {"held", "moved", "probe"}
    old = certificate["probe"]["old"]
    assert {"logits_equal", "metric_before", "metric_after"} <= old.keys()
    assert (old["logits_equal"], old["metric_before"]) == (True, old["metric_after"])
    assert certificate["probe"]["new"]["metric_before"] is None
    assert certify(rows, training.report)["naive"] is None
