"""A hold on the front that grows and shrinks; what leaves it is as it would be without."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.errors import CannotFreeze
from frostline.fast.front_hold import FrontHold
from frostline.fast.front_layers import front_layers
from frostline.freezing import freeze


def part():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))


def made(*parts):
    model = nn.Sequential(*parts, nn.Linear(2, 1))
    front = front_layers(model, by=[str(number) for number in range(len(parts))], head=str(len(parts)))
    return model, FrontHold(model, torch.optim.SGD(model.parameters(), lr=0.1), front)


def modes(model):
    return [module.training for module in model]


def test_it_grows_and_shrinks_and_verifies_all_of_it():
    model, front = made(part(), part(), part())
    assert (front.count, front.hold, front.parts) == (0, None, [])
    for count in (1, 3, 2, 0):
        front.hold_first(count)
        model.train()
        assert modes(model) == [False] * count + [True] * (4 - count)
        assert [p.requires_grad for p in model.parameters()][::4] == [False] * count + [True] * (4 - count)
        assert front.count == count
        if front.hold is not None:
            assert front.hold.verify().still == sum(path.split(".")[0] < str(count) for path in front.hold.paths)


def test_what_is_thawed_joins_the_mode_that_the_model_is_in():
    model, front = made(part(), part())
    front.hold_first(2)
    model.eval()
    front.hold_first(1)
    assert not model[1][1].training
    model.train()
    front.hold_first(0)
    assert model[0][1].training


def test_frozen_in_eval_mode_and_thawed_in_train_mode():
    model, front = made(part(), part())
    model.eval()
    front.hold_first(2)
    model.train()
    front.hold_first(0)
    assert all(module.training for module in model.modules())


def test_what_was_in_eval_mode_by_hand_stays_there():
    model, front = made(part(), part())
    model[0][1].eval()
    front.hold_first(1)
    front.hold_first(2)
    front.hold_first(0)
    assert [module.training for module in model.modules()].count(False) == 1
    assert not model[0][1].training


def test_what_others_hold_stays_held():
    model, front = made(part(), part())
    theirs = freeze(model, "0")
    front.hold_first(2)
    front.hold_first(0)
    model.train()
    assert modes(model) == [False, True, True]
    theirs.verify()


def test_a_part_that_cannot_be_held_leaves_what_was_held():
    _, front = made(part(), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)))
    front.hold_first(1)
    with pytest.raises(CannotFreeze):
        front.hold_first(2)
    assert front.count == 1
    front.hold.verify()


def test_a_hold_that_someone_else_has_released_holds_nothing():
    model, front = made(part())
    front.hold_first(1)
    front.hold.thaw()
    assert (front.count, front.parts) == (0, [])
    front.hold_first(1)
    assert not model[0][0].weight.requires_grad
