"""Learned rates: shapes, values at each step, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.errors import MetaError
from frostline.meta import Rates

ADAPTED = {"a.weight": nn.Parameter(torch.zeros(2, 3)), "b": nn.Parameter(torch.zeros(4))}


def test_fixed_rates_are_numbers_and_train_nothing() -> None:
    rates = Rates(ADAPTED, start=0.1, steps=3)
    assert list(rates.at(0)) == list(rates.at(9)) == [0.1, 0.1]
    assert not list(rates.parameters())


def test_a_rate_for_each_element_is_the_same_in_every_step() -> None:
    rates = Rates(ADAPTED, start=0.1, steps=3, learn="parameter")
    assert [p.shape for p in rates.parameters()] == [(2, 3), (4,)]
    assert rates.at(0)[0] is rates.at(2)[0]


def test_a_rate_for_each_tensor_and_step_repeats_the_last_one() -> None:
    rates = Rates(ADAPTED, start=0.1, steps=3, learn="layer_step")
    with torch.no_grad():
        rates.values[1].copy_(torch.tensor([1.0, 2.0, 3.0]))
    assert [rates.at(step)[1].item() for step in (0, 1, 2, 7)] == [1, 2, 3, 3]  # type: ignore[union-attr]


@pytest.mark.parametrize("start", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(start: float) -> None:
    with pytest.raises(MetaError, match="is no rate"):
        Rates(ADAPTED, start=start, steps=1)


def test_an_unknown_way_to_learn_is_refused() -> None:
    with pytest.raises(MetaError, match="'layers'"):
        Rates(ADAPTED, start=0.1, steps=1, learn="layers")  # type: ignore[arg-type]
