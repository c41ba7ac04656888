"""Inputs become arguments."""

from __future__ import annotations

import pytest
import torch

from frostline.state.arguments import arguments_of

X = torch.ones(1)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [(X, ((X,), {})), ((X, 2), ((X, 2), {})), ([X], ((X,), {})), ({"x": X}, ((), {"x": X})), ("ab", (("ab",), {}))],
)
def test_arguments(inputs, expected) -> None:
    assert arguments_of(inputs) == expected
