"""What each layer would do in the next training step (scenario S2)."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

import frostline as fl


@pytest.fixture
def resnet18():
    from frostline.compat import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = import_torchvision("models")
    return models.resnet18(weights=None)


def test_printed_text_of_the_s2_situation():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.GroupNorm(2, 4), nn.Flatten(), nn.LazyLinear(2)
    )
    model.eval()(torch.randn(2, 1, 5, 5))
    model.requires_grad_(False).train()
    model[5].bias.requires_grad_(True)
    assert str(fl.explain(model)) == (
        "layer  type         trains  mode   normalizes with  updates  held\n"
        "─────  ───────────  ──────  ─────  ───────────────  ───────  ────\n"
        "0      Conv2d       no      train  –                –        –\n"
        "1      BatchNorm2d  no      train  batch            yes      –\n"
        "2      Dropout      –       train  –                –        –\n"
        "3      GroupNorm    no      train  sample           no       –\n"
        "5      Linear       part    train  –                –        –\n"
        "F107 warning: 1 normalization layers have no trainable parameter, yet would move their statistics\n"
        "  seen: training=True, requires_grad=False: 1\n"
        "  fix:  frostline.freeze(model, '1')"
    )
    fl.freeze(model, "0", "1", "2", "3")
    fl.freeze(model, "1", level="stats")
    assert str(fl.explain(model)) == (
        "layer  type         trains  mode   normalizes with  updates  held\n"
        "─────  ───────────  ──────  ─────  ───────────────  ───────  ────────────\n"
        "0      Conv2d       no      eval   –                –        state\n"
        "1      BatchNorm2d  no      eval   running          no       state, stats\n"
        "2      Dropout      –       eval   –                –        state\n"
        "3      GroupNorm    no      eval   sample           no       state\n"
        "5      Linear       part    train  –                –        –"
    )


def test_resnet18_frozen_by_half_and_frozen(resnet18):
    resnet18.requires_grad_(False)
    rows = fl.explain(resnet18)
    assert len(rows) == 41
    norms = [row for row in rows if row.uses]
    assert len(norms) == 20
    assert {(r.trainable, r.mode, r.uses, r.updates) for r in norms} == {("no", "train", "batch", True)}
    (finding,) = rows.findings
    assert (finding.code, len(finding.paths)) == ("F107", 20)
    x = torch.randn(2, 3, 32, 32)
    outputs = [(resnet18.train()(x), resnet18.eval()(x))[1] for _ in range(2)]
    assert not torch.equal(*outputs)  # the frozen net that changes from epoch to epoch

    hold = fl.freeze(resnet18, "*")
    outputs = [(resnet18.train()(x), resnet18.eval()(x))[1] for _ in range(2)]
    assert torch.equal(*outputs)
    rows = fl.explain(resnet18.train())
    assert rows.findings == []
    assert {(r.mode, r.uses, r.updates, r.held) for r in rows if r.uses} == {("eval", "running", False, "state")}
    hold.verify()


def test_resnet18_rows_fold(resnet18):
    text = str(fl.explain(resnet18))
    assert "layer[1-4].[0-1].bn[1-2] (x16)" in text
    assert len(text.splitlines()) == 9


def test_vit(vit_tiny):
    fl.freeze(vit_tiny, "blocks")
    rows = {row.path: row for row in fl.explain(vit_tiny.train())}
    assert rows[""].trainable == "yes"  # cls_token and pos_embed
    assert (rows["blocks.0.norm1"].uses, rows["blocks.0.norm1"].updates) == ("sample", False)
    assert (rows["blocks.11.mlp.fc1"].trainable, rows["blocks.11.mlp.fc1"].held) == ("no", "state")
    assert rows["head"].trainable == "yes"
    assert "(root)" in str(fl.explain(vit_tiny))


def test_a_norm_that_trains_is_not_frozen_by_half(resnet18):
    assert fl.explain(resnet18).findings == []


def test_a_norm_that_writes_to_copies_does_not_update():
    model = nn.Sequential(nn.InstanceNorm1d(2, affine=True, track_running_stats=True))
    model[0].track_running_stats = False
    model.eval()
    assert fl.explain(model)[0].updates
    hold = fl.freeze(model, "0")
    assert not fl.explain(model)[0].updates
    assert fl.explain(model).findings == []
    model(torch.randn(2, 2, 5))
    hold.verify()


def test_layers_that_neither_train_nor_move_are_not_listed_even_when_held():
    model = nn.Sequential(nn.ReLU(), nn.LSTM(2, 2, dropout=0.0))
    assert [row.path for row in fl.explain(model)] == ["1"]
    fl.freeze(model, "*")
    rows = fl.explain(model.train())
    assert [(row.path, row.mode, row.held) for row in rows] == [("1", "train", "state")]


def test_reads_only_and_looks_through_wrappers(two_heads, bytes_of):
    before = bytes_of(two_heads), [dict(m.__dict__) for m in two_heads.modules()]
    rows = fl.explain(nn.DataParallel(two_heads))
    assert (bytes_of(two_heads), [dict(m.__dict__) for m in two_heads.modules()]) == before
    assert rows.model_type == "TwoHeads"


def test_json_and_html(two_heads):
    rows = fl.explain(two_heads.requires_grad_(False))
    data = json.loads(json.dumps(rows.to_json()))
    assert set(data) == {"schema_version", "model", "layers", "findings"}
    assert data["layers"][1] == {
        "path": "trunk.1",
        "module_type": "BatchNorm2d",
        "trainable": "no",
        "mode": "train",
        "uses": "batch",
        "updates": True,
        "held": None,
    }
    assert data["findings"][0]["code"] == "F107"
    assert rows._repr_html_().startswith("<table><caption>TwoHeads</caption>")
    assert repr(rows) == str(rows)
