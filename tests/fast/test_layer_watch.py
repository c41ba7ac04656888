"""Windows of steps, what is remembered of them, and drops of the rate."""

from __future__ import annotations

import json

import torch
from torch import nn

from frostline.fast.convergence import Rule
from frostline.fast.front_layers import front_layers
from frostline.fast.layer_watch import LayerWatch

RULE = Rule(tolerance=0.0, rest=0.5, growth=0.25, patience=2)


def made(window_steps=None):
    model = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(3)))
    for layer in model:
        nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD([{"params": [layer.weight]} for layer in model], lr=0.01)
    return model, optimizer, LayerWatch(model, optimizer, front_layers(model, head="2"), RULE, window_steps)


def step(model, optimizer, count=1):
    for _ in range(count):
        for parameter in model.parameters():
            parameter.grad = torch.ones(1, 1) if parameter.requires_grad else None
        optimizer.step()


def said(watch):
    return [history.verdict for history in watch.histories]


def test_windows_end_when_told_or_by_themselves():
    model, optimizer, watch = made()
    step(model, optimizer, 5)
    assert (watch.windows, watch.steps, watch.nbytes) == (0, 5, 8)
    watch.end_window()
    watch.end_window()
    assert (watch.windows, watch.steps, watch.nbytes) == (1, 5, 0)
    model, optimizer, watch = made(2)
    step(model, optimizer, 5)
    assert (watch.windows, watch.steps, watch.nbytes) == (2, 5, 8)


def test_a_layer_that_is_frozen_within_a_window_begins_anew():
    model, optimizer, watch = made(2)
    step(model, optimizer, 4)
    assert said(watch) == ["steady", "steady"]
    step(model, optimizer)
    model[0].weight.requires_grad_(False)
    step(model, optimizer)
    assert said(watch) == ["not seen yet", "steady"]


def test_all_rates_have_to_drop_and_a_freeze_is_no_drop():
    model, optimizer, watch = made(1)
    step(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.001
    step(model, optimizer)
    assert watch.drop == 1
    optimizer.param_groups[0]["lr"] = 1.0
    step(model, optimizer)
    model[0].weight.requires_grad_(False)
    step(model, optimizer)
    assert watch.drop == 1
    for group in optimizer.param_groups:
        group["lr"] /= 8
    step(model, optimizer, 3)
    assert round(watch.drop, 6) == 8
    watch.settle()
    assert watch.drop == 1


def test_a_rate_of_zero_is_no_drop():
    model, optimizer, watch = made(1)
    step(model, optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step(model, optimizer)
    assert watch.drop == 1


def test_what_was_seen_goes_through_json():
    model, optimizer, watch = made(1)
    step(model, optimizer, 3)
    state = json.loads(json.dumps(watch.state_dict(), allow_nan=False))
    _, _, other = made(1)
    other.load_state_dict(state)
    assert other.state_dict() == watch.state_dict()
    assert said(other) == ["steady", "steady"]


def test_detached_it_sees_nothing():
    model, optimizer, watch = made(1)
    step(model, optimizer)
    watch.detach()
    step(model, optimizer)
    assert (watch.steps, watch.nbytes) == (1, 0)
