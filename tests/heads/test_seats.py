"""Places in optimizers, and what is kept in them."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.heads.seats import find_seats, first_state, reseat, torch_optimizer, widened_state


def stepped(make, layer: nn.Module):
    optimizer = make(layer.parameters())
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for parameter in layer.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def test_only_torch_optimizers_with_state_by_parameter():
    with pytest.raises(ModelError, match=r"f: optimizer=list is no torch\.optim\.Optimizer"):
        torch_optimizer([], "f")
    with pytest.raises(ModelError, match="LBFGS keeps its directions as one vector"):
        torch_optimizer(torch.optim.LBFGS([nn.Parameter(torch.zeros(1))]), "f")


def test_a_wrapper_is_looked_through():
    inner = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    wrapper = type("Accelerated", (), {})()
    wrapper.optimizer = inner
    assert torch_optimizer(wrapper, "f") is inner


def test_what_fails_later_leaves_groups_and_state_as_they_were():
    layer = nn.Linear(3, 2)
    optimizer = stepped(lambda p: torch.optim.Adam(p, lr=0.1), layer)
    params, state = list(optimizer.param_groups[0]["params"]), dict(optimizer.state)
    new = {name: nn.Parameter(torch.zeros(4)) for name in ("weight", "bias")}
    with pytest.raises(KeyError), ExitStack() as undo:
        reseat(optimizer, find_seats(optimizer, dict(layer.named_parameters())), new, {}, undo)
        assert optimizer.param_groups[0]["params"] == [new["weight"], new["bias"]]
        assert not optimizer.state
        raise KeyError
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], params, strict=True))
    assert list(optimizer.state) == list(state)
    assert all(optimizer.state[key] is state[key] for key in state)


ZERO_STARTS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, centered=True),
    "adadelta": torch.optim.Adadelta,
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.25),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.03),
}


@pytest.mark.parametrize("make", ZERO_STARTS.values(), ids=ZERO_STARTS)
def test_state_by_element_moves_with_its_rows_and_starts_afresh_for_others(make):
    layer, wide = nn.Linear(3, 2), nn.Linear(3, 4)
    optimizer = stepped(make, layer)
    # What the optimizer itself starts from: the state after one step with a gradient of zero.
    fresh = make(wide.parameters())
    for parameter in wide.parameters():
        parameter.grad = torch.zeros_like(parameter)
    fresh.step()
    rows = torch.tensor([2, 0])
    for name, seat in find_seats(optimizer, dict(layer.named_parameters())).items():
        new = wide.get_parameter(name)
        old, got = optimizer.state[seat.parameter], widened_state(optimizer, seat, new, rows)
        assert got.keys() == old.keys()
        for key, value in old.items():
            if torch.is_tensor(value) and value.ndim:
                assert torch.equal(got[key][rows], value)
                assert torch.equal(got[key][[1, 3]], fresh.state[new][key][[1, 3]])
                assert got[key].shape == new.shape
            else:
                assert got[key] is value


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="Adafactor came with torch 2.5")
def test_state_of_another_shape_is_not_guessed():
    layer = nn.Linear(3, 2)
    optimizer = stepped(torch.optim.Adafactor, layer)
    seats = find_seats(optimizer, dict(layer.named_parameters()))
    assert widened_state(optimizer, seats["weight"], nn.Parameter(torch.zeros(4, 3)), torch.tensor([0, 1])) is None


def test_no_state_is_made_up():
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    seat = find_seats(optimizer, {"weight": layer.weight})["weight"]
    assert widened_state(optimizer, seat, nn.Parameter(torch.zeros(4, 3)), torch.tensor([0, 1])) == {}
    assert first_state(optimizer, seat, nn.Parameter(torch.zeros(4, 3))) == {}
    assert not optimizer.state


def test_adagrad_finds_the_state_that_it_makes_only_once():
    layer, new = nn.Linear(3, 2, bias=False), nn.Parameter(torch.zeros(4, 3))
    optimizer = stepped(lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.5), layer)
    seat = find_seats(optimizer, {"weight": layer.weight})["weight"]
    state = first_state(optimizer, seat, new)
    expected = torch.optim.Adagrad([new], initial_accumulator_value=0.5).state[new]
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)
