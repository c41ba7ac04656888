"""The models of a program, found by what ran, and the variables that hold them."""

from __future__ import annotations

import sys

import torch
from torch import nn

from frostline.audit.discovery import optimizers_of, outermost, owners_of, variable_of


class Holder:
    def __init__(self):
        self.net = nn.Linear(1, 1)

    def ask(self):
        return variable_of(self.net, sys._getframe(), "model")


def test_the_outermost_module_is_found_through_wrappers():
    inner = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(inner), nn.ReLU())
    wrapped = nn.DataParallel(model)
    assert outermost([inner])[id(inner)] is model
    assert wrapped.module is model


def test_of_several_that_have_it_the_largest_counts():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.Linear(2, 2), nn.Linear(2, 2))
    features = nn.Sequential(shared)
    assert outermost([shared])[id(shared)] is model
    assert features[0] is shared


def test_a_module_of_its_own_is_its_own_model_and_circles_end():
    alone = nn.Linear(1, 1)
    assert outermost([alone])[id(alone)] is alone
    a, b = nn.Sequential(nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 1))
    a._modules["b"], b._modules["a"] = b, a
    assert outermost([a])
    del a._modules["b"], b._modules["a"]


def test_owners_and_optimizers_are_found_by_their_parameters():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wanted = {id(p) for p in model.parameters()}
    assert set(owners_of(wanted).values()) == {model}
    assert optimizers_of(wanted) == [optimizer]
    assert optimizers_of({0}) == []


def test_variables_are_named_as_the_user_does():
    net = nn.Linear(1, 1)
    assert variable_of(net, sys._getframe(), "model") == "net"
    assert variable_of(nn.Linear(1, 1), sys._getframe(), "model") == "model"
    assert Holder().ask() == "self.net"
    _hidden = nn.Linear(1, 1)
    assert variable_of(_hidden, sys._getframe(), "model") == "model"
