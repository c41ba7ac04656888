"""Keys of caches."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from frostline.fast.cache_key import CacheKey, dtype_named
from frostline.fast.features import Place

KEY = CacheKey(
    identity={"weights": "0" * 32, "torch": "2.4"},
    entries={"stem.weight": "a", "stem.bias": "b"},
    places=(Place("stem", (2, 3), torch.bfloat16),),
    rows=4,
    preprocessing=None,
    dtype="uint8",
    keyed=True,
    randomness="unseeded",
    seed=3,
    positions="any",
)


def test_a_key_comes_back_from_json() -> None:
    assert CacheKey.from_json(json.loads(json.dumps(KEY.to_json()))) == KEY
    assert KEY.differences(KEY) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"identity": {**KEY.identity, "torch": "2.5"}}, ["torch: asked 2.4, found 2.5"]),
        ({"identity": {"weights": "0" * 32}}, ["torch: asked 2.4, found none"]),
        (
            {"identity": {**KEY.identity, "weights": "f" * 32}},
            ["weights: asked 000000000000…, found ffffffffffff…"],
        ),
        (
            {"identity": {**KEY.identity, "weights": "f" * 32}, "entries": {"stem.weight": "c", "more": "d"}},
            ["weights: 1 of 1 tensors differ, stem.weight first; only asked: stem.bias; only found: more"],
        ),
        ({"seed": 4, "rows": 8}, ["rows: asked 4, found 8", "seed: asked 3, found 4"]),
        ({"preprocessing": "crop\n"}, ["preprocessing: asked none, found crop\\n"]),
        ({"positions": "same"}, ["positions: asked any, found same"]),
    ],
)
def test_differences_are_told_by_name(change, told) -> None:
    assert KEY.differences(replace(KEY, **change)) == told


def test_types_have_names() -> None:
    assert dtype_named("float16") is torch.float16
    for name in ("float17", "nn", "Tensor"):
        with pytest.raises(ValueError, match="is no type of torch"):
            dtype_named(name)
