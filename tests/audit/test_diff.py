"""What differs between two states."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.audit import diff
from frostline.errors import NothingSelected
from frostline.state import StateDiff


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout())


@pytest.fixture
def trained(model):
    """The naive freeze: no parameter moves, the statistics do."""
    other = copy.deepcopy(model)
    other.requires_grad_(False).train()(torch.randn(16, 2))
    other.requires_grad_(True)
    return other


STATISTICS = ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_two_models(model, trained):
    found = diff(model, trained)
    assert isinstance(found, StateDiff)
    assert found
    assert found.paths == STATISTICS
    row = found.moved[0]
    expected = (trained[1].running_mean - model[1].running_mean).abs()
    assert (row.role, row.kind, row.change) == ("norm.mean", "buffer", "changed")
    # The difference is taken in float64 and the mean here in float32: one rounding each.
    assert (row.max_abs, row.mean_abs) == pytest.approx((expected.max().item(), expected.mean().item()), rel=1e-6)
    assert found.moved[2].max_abs == 1


def test_naive_comparison_of_parameters_sees_nothing(model, trained):
    pairs = zip(model.named_parameters(), trained.named_parameters(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    assert diff(model, trained)


@pytest.mark.parametrize("left", ["model", "snapshot", "snapshot with values"])
@pytest.mark.parametrize("right", ["model", "snapshot", "snapshot with values"])
def test_every_pairing(model, trained, left, right):
    def form(thing, how):
        return thing if how == "model" else fl.snapshot(thing, values=how != "snapshot")

    before, after = form(model, left), form(trained, right)
    found = diff(before, after)
    assert found.paths == STATISTICS
    known = left != "snapshot" and right != "snapshot"
    assert (found.moved[0].max_abs is not None) == known
    assert not diff(before, form(model, right))


def test_nothing_moved_and_nothing_is_changed(model):
    other = copy.deepcopy(model)
    other[1].weight.grad = torch.ones(3)
    modes, rng = [m.training for m in model.modules()], torch.get_rng_state()
    found = diff(model, other)
    assert not found
    assert found.still == len(fl.inventory(model))
    assert str(found) == f"nothing moved: {found.still} entries equal to the bit"
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)


def test_a_part(model, trained):
    assert not diff(model, trained, "0")
    assert diff(model, trained, "1").paths == STATISTICS
    assert diff(model, trained, nn.BatchNorm1d).paths == STATISTICS
    assert diff(model, trained, "!1").paths == []
    with pytest.raises(NothingSelected):
        diff(model, trained, "9")


def test_selectors_do_not_go_with_a_snapshot(model, trained):
    with pytest.raises(TypeError, match="a snapshot covers the part that it was taken of"):
        diff(fl.snapshot(model), trained, "1")
    assert not diff(fl.snapshot(model, "0"), trained)


def test_flags_structure_and_configuration(model):
    other = copy.deepcopy(model)
    other[2].eval()
    other[2].p = 0.1
    other[1].eps = 1e-3
    other[0].bias.requires_grad_(False)
    assert diff(model, other).paths == ["0.bias.requires_grad", "1.eps", "2.training", "2.p"]
    other = copy.deepcopy(model)
    other[0].bias = None
    other.append(nn.Linear(1, 1, bias=False))
    changes = {row.path: row.change for row in diff(model, other).moved}
    assert changes["0.bias"] == "removed"
    assert changes["3.weight"] == "added"
    assert {row.change for row in diff(model, copy.deepcopy(model).double()).moved} == {"retyped"}


def test_held_against_trained_in_one_figure(model):
    before = fl.snapshot(model, values=True)
    hold = fl.freeze(model, "1", level="stats")
    model.train()(torch.randn(8, 2))
    assert diff(before, model).paths == ["1.training"]
    hold.thaw()
    assert not diff(before, model)


def test_json_round_trip_and_printed_text(model, trained):
    found = diff(model, trained)
    assert StateDiff.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert str(found).splitlines()[0] == f"3 entries moved, {found.still} equal to the bit"
    assert [line.split()[0] for line in str(found).splitlines()[3:]] == STATISTICS
