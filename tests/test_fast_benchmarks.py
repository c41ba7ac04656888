"""The benchmarks of `fast`, in their quick mode: every side does the same work, and the figures add up."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import fast_heads
import fast_images
import fast_peers
import fast_views
import pytest
import torch
from measure import Comparison, resnet


def job(epochs: int = 2) -> fast_peers.Job:
    train, val = fast_images.stripes(32, 12, 0), fast_images.stripes(32, 9, 1)
    torch.manual_seed(0)
    trunk = resnet("resnet18", torch.stack([train[index][0] for index in range(8)])).eval()
    return fast_peers.Job(trunk, torch.nn.Linear(512, 3), train, val, epochs, batch=4, rate=1e-2)


@pytest.fixture(scope="module")
def heads() -> tuple[dict[str, Any], list[Comparison]]:
    small = replace(
        fast_heads.quick_suite((fast_peers.PLAIN,)),
        data={"stripes": lambda: (fast_images.stripes(32, 12, 0), fast_images.stripes(32, 9, 1), None)},
        epochs=2,
        heads=2,
        rows=4,
    )
    return fast_heads.run_suite(small)


@pytest.mark.slow
def test_the_library_is_right_as_often_as_the_plain_loop(heads: tuple[dict[str, Any], list[Comparison]]) -> None:
    seen = heads[0]["data"]["stripes"]
    assert seen["accuracy_as_plain"]["met"]
    right = seen["right_after_each_epoch"]
    assert len(right["frostline"]) == len(right["plain loop"]) == 2
    for run in seen["ours"]:
        assert run["correct"] == right["frostline"]
        assert list(run["parts"]) == ["plan", "prefix", "features", "head"]
        assert len(run["later"]) == 1
        assert all(value <= 1e-3 for value in run["differences"])
    assert [bool(run["many"]) for run in seen["ours"]] == [True, False]
    assert len(seen["limit_seconds"]) == 2


@pytest.mark.slow
def test_every_goal_of_the_heads_is_judged(heads: tuple[dict[str, Any], list[Comparison]]) -> None:
    goals = [each.goal for each in heads[1]]
    assert goals == [1 / 8, 1 / 50, 1 / 100, 1.15, None, 1 / 1.4]
    for each in heads[1]:
        assert each.met == (None if each.goal is None else each.median <= each.goal)
        assert 0 < min(each.ratios) <= each.median <= max(each.ratios)
    assert json.loads(json.dumps(heads[0], allow_nan=False))["epochs"] == 2


def test_the_limit_computes_what_the_trunk_computes() -> None:
    trunk = job().trunk
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    bare = fast_heads.folded(trunk)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in bare.modules())
    trunk.fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(bare(images), trunk(images), rtol=1e-4, atol=1e-4)


def test_epochs_that_were_not_run_count_as_those_after_the_first() -> None:
    outcome = fast_peers.Outcome([5.0, 2.0, 4.0], [1, 1, 1], 0.0)
    assert outcome.later == 3.0
    assert [outcome.seconds(epochs) for epochs in (2, 3, 10)] == [7.0, 11.0, 32.0]


@pytest.mark.slow
@pytest.mark.parametrize("peer", fast_peers.PEERS[1:], ids=lambda peer: peer.name)
def test_peers_see_the_same_images_from_the_same_start(peer: fast_peers.Peer) -> None:
    """Those whose trunk keeps still end with the plain loop's figures; the others train or move batch norm."""
    pytest.importorskip(peer.package)
    asked = job(epochs=3)
    outcome = peer.run(asked)
    assert len(outcome.epochs) == 3
    if peer.run is fast_peers.lightning_transfer:
        assert outcome.correct == fast_peers.plain(asked).correct
    assert all(0 <= count <= len(asked.val) for count in outcome.correct)


def test_random_crops_depend_on_epoch_and_index_alone() -> None:
    still = fast_images.stripes(32, 12, 0)
    first, again = still.augmented(0), still.augmented(0)
    first.set_epoch(1)
    again.set_epoch(1)
    crops = [first[index][0] for index in range(12)]
    assert all(torch.equal(crops[index], again[index][0]) for index in reversed(range(12)))
    again.set_epoch(2)
    assert not all(torch.equal(crops[index], again[index][0]) for index in range(12))
    assert all(crop.shape == still[0][0].shape == (3, 32, 32) for crop in crops)


def test_views(tmp_path: Any) -> None:
    suite, start = fast_views.quick_suite(tmp_path)
    result = fast_views.run_suite(suite, start)
    assert json.loads(json.dumps(result, allow_nan=False))["seeds"] == [0, 1]
    assert [row["condition"] for row in result["summary"]] == ["plain", "1", "2", "2, float16", "2, 8 bits", "fresh"]
    assert all(cost["fresh_as_computed"] for cost in result["costs"])
    fresh = [row for row in result["summary"] if row["condition"] == "fresh"]
    assert all(row["loss_against_fresh"]["mean"] == 0 and not row["loss_against_fresh"]["differs"] for row in fresh)
    told = fast_views.tables(result["summary"])
    assert told.count("\n") == 1 + len(result["summary"])


def test_an_interval_is_students() -> None:
    """Gaps of 2 and 4: mean 3, standard error 1, t with one degree of freedom 12.706."""
    found = fast_views.interval([2.0, 4.0])
    assert (found["mean"], found["low"], found["high"]) == pytest.approx((3, 3 - 12.706, 3 + 12.706), abs=1e-3)
    assert not found["differs"]
