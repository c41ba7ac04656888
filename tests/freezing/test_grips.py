"""Taking hold and letting go, entry by entry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.attach.ledger import ledger_of
from frostline.freezing.grips import drop_gradients, grip, release, tokens_on
from frostline.freezing.mode_lock import HardLocked, is_locked
from frostline.freezing.plan import plan_freeze


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LSTM(2, 2, num_layers=2, dropout=0.5))


def test_grip_and_release(model):
    before = [(m.training, dict(m.__dict__)) for m in model.modules()]
    plan = plan_freeze(model, "*")
    grip(plan, "a", hard=False)
    assert tokens_on(model) == {"a": "state"}
    assert model[2].dropout == 0.0
    assert all(is_locked(m) for m in (model, model[0], model[1]))
    release(model, "a")
    assert tokens_on(model) == {}
    assert [(m.training, dict(m.__dict__)) for m in model.modules()] == before


def test_gripping_again_makes_good_and_keeps_what_was_before_the_first(model):
    plan = plan_freeze(model, "1")
    grip(plan, "a", hard=False)
    model[1].training = True
    model[1].weight.requires_grad_(True)
    grip(plan, "a", hard=True)
    assert isinstance(model[1], HardLocked)
    assert not model[1].training
    assert not model[1].weight.requires_grad
    release(model, "a")
    assert model[1].training
    assert model[1].weight.requires_grad
    assert type(model[1]) is nn.BatchNorm1d


def test_gradients_are_dropped_last(model):
    model[0].weight.grad = torch.ones(2, 2)
    plan = plan_freeze(model, "0")
    grip(plan, "a", hard=False)
    assert model[0].weight.grad is not None
    drop_gradients(plan)
    assert model[0].weight.grad is None


def test_release_of_a_part(model):
    plan = plan_freeze(model, "*")
    grip(plan, "a", hard=False)
    grip(plan, "b", hard=False)
    release(model, "a", modules=["1"], parameters=["0.bias"])
    assert is_locked(model[1])  # the other one still has it
    release(model, "b", modules=["1", "gone"], parameters=["0.bias"])
    assert not is_locked(model[1])
    assert (model[0].bias.requires_grad, model[0].weight.requires_grad) == (True, False)
    assert model[2].dropout == 0.0
    assert ledger_of(model[1]).of_module == []


def test_release_of_a_stranger_does_nothing(model):
    grip(plan_freeze(model, "1"), "a", hard=False)
    release(model, "b")
    assert tokens_on(model) == {"a": "state"}


def test_a_parameter_that_was_removed_leaves_no_account_behind(model):
    grip(plan_freeze(model, "0"), "a", hard=False)
    model[0].bias = None
    release(model, "a")
    assert ledger_of(model[0]) is None


def test_tied_parameters_share_what_was_before():
    a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    b.weight = a.weight
    model = nn.Sequential(a, b)
    grip(plan_freeze(model, "0", level="grad"), "x", hard=False)
    grip(plan_freeze(model, "1", level="grad"), "y", hard=False)
    assert ledger_of(a).gradients["weight"].before is True
    assert ledger_of(b).gradients["weight"].before is True
    release(model, "x")
    assert not a.weight.requires_grad
    release(model, "y")
    assert a.weight.requires_grad
    assert ledger_of(a) is ledger_of(b) is None


def test_integer_parameters_are_held_and_released():
    layer = nn.Module()
    layer.codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    grip(plan_freeze(layer, "*"), "a", hard=False)
    release(layer, "a")
    assert not layer.codes.requires_grad
