"""What filling takes, in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from frostline.errors import CacheError
from frostline.fast.cache_reports import CacheEstimate, FillReport, duration, free_at, size
from frostline.fast.narrowing import NarrowingCost, PlaceCost


def estimate(**options: object) -> CacheEstimate:
    figures = {"samples": 1200, "views": 8, "nbytes": 5 * 10**9, "missing": 9600, "missing_bytes": 5 * 10**9}
    return CacheEstimate(Path("c"), **{**figures, "free": 2 * 10**10, "limit": 10**10, **options})  # type: ignore[arg-type]


def test_an_estimate_is_a_line() -> None:
    assert str(estimate(seconds=400)) == (
        "features of 1,200 samples x 8 views: 5.0 GB in c, all to compute, about 7 min; 20.0 GB free, limit 10.0 GB"
    )
    assert "100 to compute (52.0 MB); " in str(estimate(missing=100, missing_bytes=52_000_000))
    assert str(estimate(missing=0, views=1)).endswith("1,200 samples: 5.0 GB in c, all there")
    assert json.loads(json.dumps(estimate().to_json()))["fits"]


def test_over_the_limit_it_says_what_helps() -> None:
    estimate().refuse_over_limit(None)
    estimate(limit=1, missing=0).refuse_over_limit(None)
    with pytest.raises(
        CacheError, match=r"limit of 1.0 GB; 20.0 GB are free\n  fix: dtype=[^$]*fewer views, limit=5000"
    ):
        estimate(limit=10**9).refuse_over_limit(None)
    with pytest.raises(CacheError, match=r"1.0 GB, half of what is free; [^$]*fix: limit=5000"):
        estimate(limit=10**9, views=1, limited=False).refuse_over_limit(torch.uint8)


def test_a_report_tells_only_what_there_was() -> None:
    assert str(FillReport(3, 4, (), 0, 0.5, 1200)) == "3 computed in 0.5 s, 4 reused: 1.2 kB of features"
    cost = NarrowingCost("uint8", {"x": PlaceCost(0.5, 0.01)})
    full = FillReport(3, 4, ("a",), 2, 0.5, 1200, cost)
    assert str(full).splitlines()[1:] == [
        "damaged, and computed again: a",
        "2 samples have moved, and keep the augmentation of where they stood",
        "kept as uint8: x is off by 1 % (rms), by 0.5 at most",
    ]
    json.dumps(full.to_json())


def test_figures_are_short(tmp_path) -> None:
    assert [size(n) for n in (0, 999, 10**3, 2 * 10**12)] == ["0 bytes", "999 bytes", "1.0 kB", "2.0 TB"]
    assert [duration(s) for s in (9.94, 30.2, 91)] == ["9.9 s", "30 s", "2 min"]
    assert free_at(tmp_path / "a" / "b") > 0
