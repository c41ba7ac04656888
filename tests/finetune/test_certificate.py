"""The certificate: every held entry before and after, and what the heads say."""

from __future__ import annotations

import json

import torch
from torch import nn

from frostline.finetune.certificate import certify, tensors_of
from frostline.state.held_rows import held_rows
from frostline.state.snapshot import snapshot
from frostline.tasks import TaskModel, train_task


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
