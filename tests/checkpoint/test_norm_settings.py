"""What a state dict does not carry of normalization layers: told where it differs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline.checkpoint import open_checkpoint, plan_load
from frostline.checkpoint.norm_settings import HEADER, compare_settings, norm_settings


class FrozenBatchNorm2d(nn.Module):
    """As detection libraries have it: buffers, and an eps of its own."""

    def __init__(self, size: int, eps: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((size,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight / (self.running_var + self.eps).sqrt()  # type: ignore[operator]
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]  # type: ignore[operator]


def net(*norms: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), *norms)


def same_names(model: nn.Module) -> dict[str, str]:
    return {name: name for name in model.state_dict()}


def compare(model: nn.Module, source: nn.Module) -> list[str]:
    return compare_settings(model, open_checkpoint(source), source, same_names(model))


def test_settings_of_every_kind_of_layer():
    model = nn.Sequential(
        nn.BatchNorm2d(4, eps=1e-3),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4, eps=1e-6),
        nn.Linear(4, 4),
        FrozenBatchNorm2d(4),
    )
    assert norm_settings(model) == {
        "0": {"type": "BatchNorm2d", "eps": 1e-3},
        "1": {"type": "GroupNorm", "eps": 1e-5, "num_groups": 2},
        "2": {"type": "LayerNorm", "eps": 1e-6},
        "4": {"type": "FrozenBatchNorm2d", "eps": 0.0},
    }
    assert norm_settings(nn.Linear(1, 1)) == {}
    assert json.loads(json.dumps(norm_settings(model))) == norm_settings(model)


def test_equal_layers_say_nothing():
    assert compare(net(nn.BatchNorm2d(4)), net(nn.BatchNorm2d(4))) == []
    assert compare(nn.Linear(1, 1), nn.Linear(1, 1)) == []


def test_an_eps_that_differs_between_batch_norm_and_a_frozen_one_is_said():
    frozen, live = net(FrozenBatchNorm2d(4)), net(nn.BatchNorm2d(4))
    names = {name: name for name in frozen.state_dict()}
    assert compare_settings(live, open_checkpoint(frozen), frozen, names) == [
        "eps is 0.0 in the checkpoint and 1e-05 in the model, in 1 layers (1 ...)",
        "type is FrozenBatchNorm2d in the checkpoint and BatchNorm2d in the model, in 1 layers (1 ...)",
    ]
    # Why it matters: the same tensors, and another output where a variance is small.
    with torch.no_grad():
        frozen[1].running_var.fill_(1e-5)  # type: ignore[union-attr, operator]
        live.load_state_dict(frozen.state_dict(), strict=False)
        image = torch.ones(1, 3, 2, 2)
        assert (frozen(image) / live.eval()(image)).mean() > 1.4


def test_layers_that_differ_alike_are_counted_and_the_first_named():
    model = net(nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    source = net(nn.BatchNorm2d(4, eps=1e-3), nn.BatchNorm2d(4, eps=1e-3), nn.GroupNorm(4, 4))
    assert compare(model, source) == [
        "eps is 0.001 in the checkpoint and 1e-05 in the model, in 2 layers (1 ...)",
        "num_groups is 4 in the checkpoint and 2 in the model, in 1 layers (3 ...)",
    ]


def test_group_norm_that_takes_the_tensors_of_a_batch_norm():
    model, source = net(nn.GroupNorm(2, 4)), net(nn.BatchNorm2d(4))
    assert compare(model, source) == [
        "type is BatchNorm2d in the checkpoint and GroupNorm in the model, in 1 layers (1 ...)"
    ]


def test_layers_are_compared_where_their_tensors_go():
    source = nn.ModuleDict({"a": nn.BatchNorm1d(2, eps=1e-3), "b": nn.BatchNorm1d(2)})
    model = nn.ModuleDict({"x": nn.BatchNorm1d(2), "y": nn.BatchNorm1d(2, eps=1e-3)})
    crossed = {"a.weight": "y.weight", "b.weight": "x.weight"}
    assert compare_settings(model, open_checkpoint(source), source, crossed) == []
    straight = {"a.weight": "x.weight", "b.weight": "y.weight"}
    assert len(compare_settings(model, open_checkpoint(source), source, straight)) == 2


def test_a_plan_says_it_whether_from_a_model_or_from_a_file_that_we_wrote(tmp_path: Path):
    source, model = net(nn.BatchNorm2d(4, eps=1e-3)), net(nn.BatchNorm2d(4))
    said = "eps is 0.001 in the checkpoint and 1e-05 in the model, in 1 layers (1 ...)"
    assert said in plan_load(model, source).notes
    plan_load(net(nn.BatchNorm2d(4, eps=1e-3)), source).write(tmp_path / "a.safetensors")
    assert plan_load(model, tmp_path / "a.safetensors").notes == (said,)
    # The failing twin: a state dict says nothing of it.
    assert plan_load(model, source.state_dict()).notes == ()


# Headers that someone else wrote

MODEL = net(nn.BatchNorm2d(4))


def told(header: str) -> list[str]:
    checkpoint = replace(open_checkpoint(MODEL), metadata={HEADER: header})
    return compare_settings(MODEL, checkpoint, None, same_names(MODEL))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "{",
        "[1]",
        "null",
        '"1"',
        '{"1": 5}',
        '{"1": {"eps": [1e-5]}}',
        '{"1": {"eps": "1e-05"}}',
        '{"1": {"type": {"a": 1}}}',
        '{"1": {"eps": null}}',
        '{"1": {"color": "red"}}',
        "[" * 100_000,
        '{"1": {"eps": ' + "[" * 100_000,
        '{"1": {"eps": ' + "9" * 5000 + "}}",
        '{"1": {"eps": ' + "[" * 200 + "]" * 200 + "}}",
    ],
)
def test_a_header_without_sense_says_nothing(header: str):
    assert told(header) == []


def test_a_header_cannot_play_with_a_terminal():
    (said,) = told(json.dumps({"1": {"type": "\x1b[31mBatchNorm"}}))
    assert said == ("type is \\x1b[31mBatchNorm in the checkpoint and BatchNorm2d in the model, in 1 layers (1 ...)")


def test_a_header_that_tells_the_truth_is_heard():
    assert told(json.dumps({"1": {"type": "BatchNorm2d", "eps": 1e-5}})) == []
    assert told(json.dumps({"1": {"type": "BatchNorm2d", "eps": 0}})) == [
        "eps is 0 in the checkpoint and 1e-05 in the model, in 1 layers (1 ...)"
    ]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["1", "type", "eps", "num_groups", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(anything)
def test_whatever_a_header_says_does_no_harm(value: Any):
    assert all(isinstance(line, str) and line.isprintable() for line in told(json.dumps(value)))
