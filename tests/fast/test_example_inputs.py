"""Inputs for models that say what they take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.errors import FastError
from frostline.fast.example_inputs import example_inputs


def with_attribute(name: str, value: object) -> nn.Module:
    model = nn.Linear(2, 2).double()
    setattr(model, name, value)
    return model


@pytest.mark.parametrize(
    ("name", "value", "args", "kwargs"),
    [
        ("example_input_array", torch.ones(1, 2), [(2, 2)], {}),
        ("example_input_array", (torch.ones(3, 2), torch.ones(1)), [(3, 2), (2,)], {}),
        ("example_input_array", {"x": torch.ones(1, 2)}, [], {"x": (2, 2)}),
        ("dummy_inputs", {"ids": torch.tensor([[1, 2]])}, [], {"ids": (2, 2)}),
        ("default_cfg", {"input_size": (3, 4, 4)}, [(2, 3, 4, 4)], {}),
    ],
)
def test_models_say_what_they_take(name, value, args, kwargs) -> None:
    found, named = example_inputs(with_attribute(name, value))
    assert [tuple(each.shape) for each in found] == args
    assert {key: tuple(each.shape) for key, each in named.items()} == kwargs


def test_the_type_is_that_of_the_model() -> None:
    assert example_inputs(with_attribute("default_cfg", {"input_size": (2,)}))[0][0].dtype == torch.float64


def test_others_do_not() -> None:
    with pytest.raises(FastError, match="Linear does not say"):
        example_inputs(nn.Linear(1, 1))
