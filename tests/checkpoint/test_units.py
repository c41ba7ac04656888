"""Tensors grouped by module, and what each is for there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from frostline.checkpoint.units import ROLES, role_in, units_of


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_the_tensors_of_a_module_stay_together_in_order():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    units = units_of(shapes_of(model))
    assert list(units) == ["0", "1", "3"]
    assert [unit.order for unit in units.values()] == [0, 1, 2]
    assert [unit.kind for unit in units.values()] == ["conv", "norm", "linear"]
    assert [unit.has_statistics for unit in units.values()] == [False, True, False]
    assert units["1"].leaves == {
        "weight": "1.weight",
        "bias": "1.bias",
        "mean": "1.running_mean",
        "var": "1.running_var",
        "count": "1.num_batches_tracked",
    }
    assert units["1"].shapes == {"weight": (4,), "bias": (4,), "mean": (4,), "var": (4,), "count": ()}


@pytest.mark.parametrize(
    ("leaves", "roles"),
    [
        (["gamma", "beta", "moving_mean", "moving_variance"], ["weight", "bias", "mean", "var"]),
        (["scale", "offset"], ["weight", "bias"]),
        (["weight", "scale"], ["weight", "scale"]),
        (["scale", "weight"], ["scale", "weight"]),  # the name itself comes before what others call it
        (["gamma", "scale", "weight"], ["gamma", "scale", "weight"]),
        (["gamma", "scale"], ["weight", "scale"]),
        (["running_mean", "mean"], ["running_mean", "mean"]),
        (["in_proj_weight", "in_proj_bias"], ["in_proj_weight", "in_proj_bias"]),
    ],
)
def test_other_names_of_a_role(leaves: list[str], roles: list[str]):
    unit = units_of({f"m.{leaf}": (2,) for leaf in leaves})["m"]
    assert dict(unit.leaves) == {role: f"m.{leaf}" for role, leaf in zip(roles, leaves, strict=True)}


@pytest.mark.parametrize(
    ("shapes", "kind"),
    [
        ({"weight": (4,)}, "norm"),
        ({"weight": (4, 3)}, "linear"),
        ({"weight": (4, 3, 3)}, "conv"),
        ({"weight": (4, 3, 3, 3, 3)}, "conv"),
        ({"weight": ()}, "other"),
        ({"bias": (4,)}, "other"),
        ({"running_mean": (4,), "running_var": (4,)}, "norm"),
        ({"running_mean": (4,), "weight": (4, 3)}, "linear"),
        ({"cls_token": (1, 1, 8)}, "other"),
    ],
)
def test_the_kind_of_a_module(shapes: dict[str, tuple[int, ...]], kind: str):
    assert units_of({f"m.{name}": shape for name, shape in shapes.items()})["m"].kind == kind


def test_tensors_at_the_root_are_a_module_of_their_own():
    units = units_of({"cls_token": (1, 1, 8), "fc.weight": (2, 8)})
    assert list(units) == ["", "fc"]
    assert units[""].leaves == {"cls_token": "cls_token"}


def test_roles_are_those_of_the_inventory():
    norm = units_of(shapes_of(nn.Sequential(nn.BatchNorm1d(2))))["0"]
    assert [role_in(norm, role) for role in norm.leaves] == [
        "norm.weight",
        "norm.bias",
        "norm.mean",
        "norm.var",
        "norm.count",
    ]
    linear = units_of(shapes_of(nn.Sequential(nn.Linear(2, 2))))["0"]
    assert [role_in(linear, role) for role in linear.leaves] == ["weight", "bias"]
    assert role_in(linear, "cls_token") == "parameter"


leaf_names = st.sampled_from([*ROLES, "mean", "var", "count", "x"])


@given(st.dictionaries(st.tuples(st.sampled_from(["", "a", "a.b"]), leaf_names), st.just((2,)), max_size=12))
def test_no_tensor_is_lost_whatever_its_name(shapes: dict[tuple[str, str], tuple[int, ...]]):
    given_names = [f"{path}.{leaf}" if path else leaf for path, leaf in shapes]
    units = units_of(dict.fromkeys(given_names, (2,)))
    assert sorted(name for unit in units.values() for name in unit.leaves.values()) == sorted(given_names)
    for unit in units.values():
        assert unit.leaves.keys() == unit.shapes.keys()
