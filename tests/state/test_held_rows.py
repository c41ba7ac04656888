"""The account of what was to stay."""

from __future__ import annotations

import torch
from torch import nn

from frostline.state.held_rows import held_rows
from frostline.state.snapshot import snapshot


def test_rows_are_digests_of_tensors_and_values_of_flags():
    layer = nn.BatchNorm1d(2)
    before = snapshot(layer)
    rows = held_rows(before, layer)
    assert list(rows) == list(before)
    assert all(row["equal"] and row["before"] == row["after"] for row in rows.values())
    assert len(rows["running_mean"]["before"]) == 32
    assert rows["weight.requires_grad"] == {"before": True, "after": True, "equal": True}
    assert rows["training"] == {"before": True, "after": True, "equal": True}
    assert rows["momentum"] == {"before": 0.1, "after": 0.1, "equal": True}


def test_every_kind_of_change_is_found():
    layer = nn.BatchNorm1d(2)
    before = snapshot(layer)
    layer.eval()
    layer.momentum = 0.2
    layer.weight.requires_grad_(False)
    layer.running_mean[0] = -0.0  # equal to 0 as a number
    layer.bias = nn.Parameter(layer.bias.detach().double())
    del layer.running_var
    rows = held_rows(before, layer)
    moved = {path for path, row in rows.items() if not row["equal"]}
    assert moved >= {"training", "momentum", "weight.requires_grad", "running_mean", "bias", "running_var"}
    assert "weight" not in moved
    assert rows["running_var"]["after"] is None
    assert rows["training"] == {"before": True, "after": False, "equal": False}


def test_one_value_as_another_type_is_not_the_same():
    """The digest covers dtype and shape; so zeros of either are told apart."""
    module = nn.Module()
    module.register_buffer("a", torch.zeros(4))
    before = snapshot(module)
    module.a = torch.zeros(2, 2)
    assert not held_rows(before, module)["a"]["equal"]
