"""How far layers go, against figures done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from frostline.fast.layer_motion import Motion, Window


def one(value, *shape):
    return nn.Parameter(torch.full(shape or (1, 1), value))


def step(window, optimizer):
    window.read()
    optimizer.step()
    window.keep()


def test_the_gradient_is_a_root_mean_square_over_the_steps_and_the_update_a_part_of_the_norm():
    weight = one(1.0, 2, 2)
    optimizer = torch.optim.SGD([weight], lr=0.25)
    window = Window({0: {"w": weight}}, optimizer)
    for value in (1.0, -1.0, 3.0):
        weight.grad = torch.full((2, 2), value)
        step(window, optimizer)
    # Norms 2, 2, 6; from 1 to 1 - 0.75 = 0.25, and the norm was larger before.
    assert window.close() == {0: Motion(pytest.approx(math.sqrt((4 + 4 + 36) / 3)), 0.75, 0.25)}
    assert window.steps == 3


def test_a_step_there_and_back_again_is_no_update():
    weight = one(1.0)
    optimizer = torch.optim.SGD([weight], lr=0.5)
    window = Window({0: {"w": weight}}, optimizer)
    for value in (1.0, -1.0):
        weight.grad = torch.full((1, 1), value)
        step(window, optimizer)
    assert window.close()[0].update == 0


def test_a_matrix_that_goes_far_is_not_hidden_by_a_large_one():
    small, large = one(0.01), one(100.0)
    window = Window({0: {"small": small, "large": large}}, torch.optim.SGD([small, large], lr=1.0))
    with torch.no_grad():
        small.mul_(2)
    assert window.close()[0].update == pytest.approx(0.5)


def test_a_bias_that_begins_at_zero_is_compared_with_its_layer():
    weight, bias = one(1.0), one(0.0, 1)
    window = Window({0: {"weight": weight, "bias": bias}}, torch.optim.SGD([weight, bias], lr=1.0))
    with torch.no_grad():
        bias.add_(0.001)
    assert window.close()[0].update == pytest.approx(0.001, rel=1e-3)


def test_what_was_read_and_not_kept_does_not_count():
    weight = one(1.0)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    window = Window({0: {"w": weight}}, optimizer)
    weight.grad = torch.full((1, 1), math.inf)
    window.read()
    weight.grad = torch.ones(1, 1)
    step(window, optimizer)
    assert window.close()[0].gradient == 1


def test_gradients_that_a_fused_optimizer_is_to_unscale_are_unscaled():
    weight = one(1.0)
    optimizer = torch.optim.SGD([weight], lr=0.0)
    window = Window({0: {"w": weight}}, optimizer)
    weight.grad = torch.full((1, 1), 1024.0)
    optimizer.grad_scale = torch.tensor(512.0)
    window.read()
    window.keep()
    assert window.close()[0].gradient == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_types(dtype):
    weight = nn.Parameter(torch.ones(2, 2, dtype=dtype))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    window = Window({0: {"w": weight}}, optimizer)
    weight.grad = torch.ones(2, 2, dtype=dtype)
    step(window, optimizer)
    assert window.close() == {0: Motion(2.0, 0.5, 0.5)}


def test_a_sparse_gradient():
    table = nn.Embedding(4, 1, sparse=True)
    nn.init.ones_(table.weight)
    optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
    window = Window({0: {"weight": table.weight}}, optimizer)
    table(torch.tensor([1, 1])).sum().backward()
    step(window, optimizer)
    assert window.close() == {0: Motion(2.0, pytest.approx(2 / math.sqrt(4)), 1.0)}


def test_no_gradient_is_not_a_gradient_of_zero():
    with_none, with_zero = one(1.0), one(1.0)
    optimizer = torch.optim.SGD([with_none, with_zero], lr=1.0)
    window = Window({0: {"a": with_none}, 1: {"b": with_zero}}, optimizer)
    with_zero.grad = torch.zeros(1, 1)
    step(window, optimizer)
    assert [motion.gradient for motion in window.close().values()] == [None, 0.0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_seen(value):
    weight = one(1.0)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    window = Window({0: {"w": weight}}, optimizer)
    weight.grad = torch.full((1, 1), value)
    step(window, optimizer)
    motion = window.close()[0]
    assert not math.isfinite(motion.gradient)
    assert not math.isfinite(motion.update)


def test_the_rate_is_the_highest_of_its_groups_and_steps():
    first, second = one(1.0), one(1.0)
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.2}], lr=1.0)
    window = Window({0: {"a": first}, 1: {"a": first, "b": second}}, optimizer)
    step(window, optimizer)
    optimizer.param_groups[0]["lr"] = 0.3
    step(window, optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    step(window, optimizer)
    assert [motion.rate for motion in window.close().values()] == [0.3, 0.3]
    assert window.rates == {0: 0.3, 1: 0.2}
    second.requires_grad_(False)
    step(window, optimizer)
    assert window.rates == {0: 0.3, 1: 0.2}


def test_it_covers_what_is_still_there():
    first, second = one(1.0), one(1.0)
    window = Window({0: {"a": first}}, torch.optim.SGD([first, second], lr=1.0))
    assert window.covers({0: {"a": first}}, 0)
    assert window.covers({}, 1)
    assert not window.covers({}, 0)
    assert not window.covers({0: {"a": second}}, 0)
    assert not window.covers({0: {"a": first, "b": second}}, 0)
    assert window.nbytes == 4
