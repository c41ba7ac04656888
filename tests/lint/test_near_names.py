"""How far two names are apart."""

from __future__ import annotations

import pytest

from frostline.lint.near_names import distance


@pytest.mark.parametrize(
    ("one", "other", "slips"),
    [
        ("parameters", "parameters", 0),
        ("parameter", "parameters", 1),
        ("name_parameters", "named_parameters", 1),
        ("zero_gard", "zero_grad", 1),
        ("ca", "abc", 3),
        ("required_grads", "requires_grad", 2),
        ("", "eval", 4),
        ("eval", "", 4),
    ],
)
def test_slips_are_counted(one, other, slips):
    assert distance(one, other) == slips
    assert distance(other, one) == slips
