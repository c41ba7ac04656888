"""What each layer would do in the next training step (scenario S2)."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.norms import EMA, Blend, StatsPolicy
from frostline.norms.domain_split import split_domains
from frostline.norms.policed import set_policy
from frostline.norms.step_commit import step_commit


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
        "layer  type         trains  mode   normalizes with  updates   held\n"
        "─────  ───────────  ──────  ─────  ───────────────  ────────  ────\n"
        "0      Conv2d       no      train  –                –         –\n"
        "1      BatchNorm2d  no      train  batch            ema(0.1)  –\n"
        "2      Dropout      –       train  –                –         –\n"
        "3      GroupNorm    no      train  sample           no        –\n"
        "5      Linear       part    train  –                –         –\n"
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


def test_what_set_a_policy_has_a_column_where_it_was_not_the_default():
    model = nn.Sequential(*[nn.BatchNorm1d(2) for _ in range(6)], nn.Dropout())
    fl.freeze(model, "0")
    model[1].track_running_stats = False
    set_policy(model, "2", train=StatsPolicy(Blend(0.3), EMA(0.2)))
    split_domains(model, ["a", "b"], "3")
    model[4].eval()
    assert str(fl.explain(model)) == (
        "layer  type         trains  mode   normalizes with   updates   held   set by\n"
        "─────  ───────────  ──────  ─────  ────────────────  ────────  ─────  "
        "───────────────────────────────────────────────────\n"
        "0      BatchNorm1d  no      eval   running           no        state  –\n"
        "1      BatchNorm1d  yes     train  batch             no        –      "
        "looks like Lightning's BaseFinetuning.freeze_module\n"
        "2      BatchNorm1d  yes     train  blend(0.3 batch)  ema(0.2)  –      frostline policy\n"
        "3      BatchNorm1d  yes     train  domain(a, b)      ema(0.1)  –      frostline domains\n"
        "4      BatchNorm1d  yes     eval   running           no        –      looks like eval() by the user\n"
        "5      BatchNorm1d  yes     train  batch             ema(0.1)  –      –\n"
        "6      Dropout      –       train  –                 –         –      –\n"
        "as PyTorch has it:\n"
        "  1: training=True, track_running_stats=False, buffers kept\n"
        "  2: training=True, track_running_stats=True, buffers kept, momentum=0.1, forward replaced by PolicyForward\n"
        "  3: training=True, track_running_stats=True, buffers kept, momentum=0.1, forward replaced by DomainForward\n"
        "  4: training=False, track_running_stats=True, buffers kept"
    )
    rows = json.loads(json.dumps(fl.explain(model).to_json()))["layers"]
    assert rows[0]["set_by"] == "a hold (level state)"
    assert rows[2]["policy"] == "uses blend(0.3 batch), updates ema(0.2)"
    assert rows[6]["policy"] is rows[6]["encoded"] is rows[6]["set_by"] is None
    assert "<th>set by</th>" in fl.explain(model)._repr_html_()


def test_layers_alike_fold_and_those_set_by_others_stand_apart(resnet18):
    plain = len(str(fl.explain(resnet18)).splitlines())
    resnet18.layer1.eval()
    text = str(fl.explain(resnet18))
    # A line for layer1's batch norms, one for its convolutions, and two for what PyTorch has.
    assert len(text.splitlines()) == plain + 4
    assert "layer1.[0-1].bn[1-2] (x4)" in text
    assert "  layer1.[0-1].bn[1-2] (x4): training=False, track_running_stats=True, buffers kept" in text


def test_an_update_that_a_policy_asks_for_is_no_half_frozen_layer():
    model = nn.Sequential(nn.BatchNorm1d(2)).requires_grad_(False)
    assert [f.code for f in fl.explain(model).findings] == ["F107"]
    set_policy(model, train=StatsPolicy("running", EMA(0.1)))
    assert fl.explain(model).findings == []


def test_statistics_that_move_once_per_step():
    model = nn.Sequential(nn.BatchNorm1d(2))
    with step_commit(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        (row,) = fl.explain(model)
        assert (row.policy, row.set_by) == ("uses batch, updates once per step(0.1)", "frostline step_commit")
    assert fl.explain(model)[0].set_by == "the user or the default"


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
        "policy": "uses batch, updates ema(0.1)",
        "encoded": "training=True, track_running_stats=True, buffers kept, momentum=0.1",
        "set_by": "the user or the default",
    }
    assert data["findings"][0]["code"] == "F107"
    assert rows._repr_html_().startswith("<table><caption>TwoHeads</caption>")
    assert repr(rows) == str(rows)
