"""The plan says what is frozen, why the rest is not, and what it would save."""

from __future__ import annotations

import json

import pytest
import torch
from fast_nets import images_net
from torch import nn

import frostline as fl
from frostline.errors import FastError, NoPrefix
from frostline.state.snapshot import snapshot

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_plan_prints_itself() -> None:
    model = images_net()
    fl.freeze(model, "[0-8]")
    plan = fl.fast.plan(model, IMAGES)
    text = str(plan).splitlines()
    assert text[:3] == [
        "frozen prefix of Sequential: [0-8] (x9)",
        "  boundary: 8 (32,) float32, 128 bytes a sample",
        "  not in it: 9: trains",
    ]
    names = [row.name for row in plan.savings]
    assert names == ["plain", "folded", "channels_last", "folded, channels_last", "cached"]
    assert plan.savings[0].difference == plan.savings[-1].difference == 0
    assert all(
        row.step_seconds and row.prefix_seconds and row.step_seconds > row.prefix_seconds for row in plan.savings
    )
    assert "equal to the bit" in text[5]
    assert "what each shortcut would save" in plan._repr_html_()
    data = json.loads(json.dumps(plan.to_json()))
    assert data["places"] == [{"name": "8", "shape": [32], "dtype": "float32", "nbytes": 128}]
    assert data["rest"] == [{"path": "9", "reason": "'9.weight' trains"}]
    assert plan.nbytes == 128


def test_timing_moves_nothing() -> None:
    model = images_net()
    fl.freeze(model, "[0-3]")  # a batch norm and a dropout are in the rest
    before, state = snapshot(model), torch.random.get_rng_state()
    fl.fast.plan(model.train(), IMAGES)
    assert [row.path for row in before.diff(model.train()).moved] == []
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_frozen_comes_first() -> None:
    model = images_net()
    fl.freeze(model, "3")
    with pytest.raises(NoPrefix, match=r"first part is not frozen\n  0: trains"):
        fl.fast.plan(model, IMAGES)


def test_a_model_that_says_what_it_takes_needs_no_inputs() -> None:
    model = images_net()
    fl.freeze(model, "[0-8]")
    with pytest.raises(FastError, match="does not say what inputs it takes"):
        fl.fast.plan(model)
    model.default_cfg = {"input_size": (3, 6, 6)}
    assert fl.fast.plan(model, timing=False).modules == tuple("012345678")


def test_a_wrapper_is_looked_through() -> None:
    model = images_net()
    fl.freeze(model, "[0-8]")
    wrapped = nn.DataParallel(model)
    assert fl.fast.plan(wrapped, IMAGES, timing=False).modules == tuple("012345678")
