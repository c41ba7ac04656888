"""Samples taken apart and put together."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from frostline.errors import CacheError
from frostline.fast.sample_parts import Form, digest_of, form_of, leaf_forms, leaves, together

VALUES = [
    3,
    True,
    0.5,
    None,
    torch.arange(3),
    (1, [2.0, None], {"a": torch.ones(2, 2, dtype=torch.bfloat16), "b": ()}),
]


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_what_is_taken_apart_is_put_together(value) -> None:
    form = form_of(value)
    parts = leaves(value, form)
    assert repr(together(parts, form, batch=False)) == repr(value)
    assert [(tuple(part.shape), part.dtype) for part in parts] == leaf_forms(form)
    assert Form.from_json(json.loads(json.dumps(form.to_json()))) == form


def test_arrays_of_numpy_are_tensors() -> None:
    value = (np.float32(1.5), np.arange(2))
    assert [part.tolist() for part in leaves(value, form_of(value))] == [1.5, [0, 1]]
    assert str(form_of(value)) == "tuple(0: float32 (), 1: int64 (2,))"


def test_numbers_of_a_batch_stay_tensors() -> None:
    assert together([torch.tensor([1, 2])], form_of(1), batch=True).tolist() == [1, 2]


def test_digests_tell_types_shapes_values_and_borders_apart() -> None:
    one = torch.tensor([1, 0], dtype=torch.int32)
    groups = [[one], [one.view(torch.int64)], [one.view(1, 2)], [one[:1], one[1:]], [one.flip(0)], []]
    assert len({digest_of(group) for group in groups}) == len(groups)
    assert digest_of([torch.arange(6).view(2, 3).t()]) == digest_of([torch.arange(6).view(2, 3).t().contiguous()])


def test_what_cannot_be_kept_is_named() -> None:
    with pytest.raises(CacheError, match="a sample holds a set"):
        form_of((1, {2}))
