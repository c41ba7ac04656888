"""Values that JSON can hold."""

from __future__ import annotations

import json

import pytest

from frostline.json_values import finite


def test_numbers_that_json_has_not_become_words():
    value = {"a": (1.0, float("nan")), "b": {"c": [float("-inf"), 2, None, True, "x"]}}
    made = finite(value)
    assert made == {"a": [1.0, "nan"], "b": {"c": ["-inf", 2, None, True, "x"]}}
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    with pytest.raises(ValueError, match="JSON compliant"):
        json.dumps(value, allow_nan=False)  # the naive way
