"""Running statistics of several ranks: how far they are apart, and merged; with two real gloo processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import frostline as fl
from frostline.errors import NonFiniteStatistics, NormsError, NoStatistics
from frostline.norms import tracked_layers
from frostline.norms.ranks import (
    RankDifference,
    RankReport,
    _merged,
    _planned,
    _Statistics,
    merge_statistics,
    rank_differences,
)


def state(mean, var, count=10, prefix="bn."):
    return {
        prefix + "running_mean": torch.tensor(mean),
        prefix + "running_var": torch.tensor(var),
        prefix + "num_batches_tracked": torch.tensor(count),
    }


def layers(layer=None):
    return {"bn": layer if layer is not None else nn.BatchNorm1d(2, eps=0.0)}


class TestRankDifferences:
    def test_ranks_that_agree(self):
        one = state([1.0, 2.0], [3.0, 4.0])
        assert rank_differences(layers(), [one, one, one]) == {"bn": RankDifference(0.0, 1.0, 0.0)}

    def test_by_hand(self):
        """Means 0 and 2, variances 1 and 4, in the first channel; the second agrees."""
        found = rank_differences(layers(), [state([0.0, 5.0], [1.0, 1.0]), state([2.0, 5.0], [4.0, 1.0])])["bn"]
        merged_var = (1 + 4) / 2 + 1
        assert found.mean == pytest.approx(2 / merged_var**0.5)
        assert found.var == pytest.approx(4)
        # Rank 0 normalizes values of mean 1 and variance 3.5 with 0 and 1; rms over both channels.
        assert found.effect == pytest.approx((((1 - 0) ** 2 + (merged_var**0.5 - 1) ** 2) / 2) ** 0.5)

    def test_channels_that_the_next_layer_does_not_feel(self):
        layer = nn.BatchNorm1d(2, eps=0.0)
        layer.weight.data = torch.tensor([0.0, 1.0])
        found = rank_differences(layers(layer), [state([0.0, 5.0], [1.0, 1.0]), state([90.0, 5.0], [4.0, 1.0])])["bn"]
        assert found.effect == 0
        assert found.mean > 1

    def test_one_rank_far_off_among_many(self):
        states = [state([0.0, 0.0], [1.0, 1.0])] * 7 + [state([0.0, 0.0], [1e-6, 1.0])]
        found = rank_differences(layers(), states)["bn"]
        assert found.var == pytest.approx(1e6)
        assert found.effect > 100, "its output is off by a factor of hundreds"

    def test_counters_that_differ_are_weights(self):
        """A rank that has seen nothing counts for nothing: the merged statistics are those of the other."""
        found = rank_differences(layers(), [state([0.0, 0.0], [1.0, 1.0], 0), state([3.0, 3.0], [4.0, 4.0], 7)])["bn"]
        assert found.mean == pytest.approx(3 / 2)
        assert found.effect == pytest.approx((3**2 + (2 - 1) ** 2) ** 0.5)

    @pytest.mark.parametrize(
        "prefix", ["bn.", "module.bn.", "_orig_mod.bn.", "module._orig_mod.bn.", "_orig_mod.module.bn."]
    )
    def test_tokens_of_wrappers(self, prefix):
        states = [state([0.0, 0.0], [1.0, 1.0]), state([2.0, 2.0], [1.0, 1.0], prefix=prefix)]
        assert rank_differences(layers(), states)["bn"].mean == pytest.approx(2 / 2**0.5)

    def test_a_child_that_is_called_module(self):
        model = nn.Sequential(OrderedDict(module=nn.BatchNorm1d(2), head=nn.BatchNorm1d(2)))
        assert list(rank_differences(tracked_layers(model), [model.state_dict()] * 2)) == ["module", "head"]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_not_finite_is_infinitely_far(self, bad):
        found = rank_differences(layers(), [state([bad, 0.0], [1.0, 1.0]), state([0.0, 0.0], [1.0, 1.0])])["bn"]
        assert found == RankDifference(*[float("inf")] * 3)

    def test_a_state_without_the_layer(self):
        with pytest.raises(
            NoStatistics, match=r"the state of rank 1 has no running_mean and running_var of layer 'bn'"
        ):
            rank_differences(layers(), [state([0.0, 0.0], [1.0, 1.0]), {}])

    def test_another_width(self):
        with pytest.raises(NormsError, match=r"layer 'bn' has another width on other ranks: \[\(2,\), \(3,\)\]"):
            rank_differences(layers(), [state([0.0] * 2, [1.0] * 2), state([0.0] * 3, [1.0] * 3)])

    def test_without_counters_and_in_half_precision(self):
        """FrozenBatchNorm has no counter."""
        states = [{k: v.bfloat16() for k, v in state([m, m], [1.0, 1.0]).items() if "num" not in k} for m in (0.0, 2.0)]
        assert rank_differences(layers(), states)["bn"].mean == pytest.approx(2 / 2**0.5)

    def test_only_reads(self):
        states = [state([0.0, 0.0], [1.0, 1.0]), state([2.0, 2.0], [1.0, 1.0])]
        before = [{k: v.clone() for k, v in each.items()} for each in states]
        rank_differences(layers(), states)
        assert all(torch.equal(v, b[k]) for each, b in zip(states, before, strict=True) for k, v in each.items())


def statistics(x):
    return _Statistics(x.mean(0), x.var(0, unbiased=False), 1)


class TestMerged:
    def test_equal_parts_give_the_union(self):
        torch.manual_seed(0)
        parts = [torch.randn(50, 3, dtype=torch.float64) * 2 + m for m in (0.0, 4.0, 9.0)]
        found, whole = _merged(nn.BatchNorm1d(3), [statistics(p) for p in parts]), statistics(torch.cat(parts))
        assert torch.allclose(found.mean, whole.mean, rtol=1e-12)
        assert torch.allclose(found.var, whole.var, rtol=1e-12)
        averaged = torch.stack([p.var(0, unbiased=False) for p in parts]).mean(0)
        assert bool((averaged < 0.5 * whole.var).all()), "averaging variances, as timm's distribute_bn does"

    def test_an_instance_norm_keeps_the_variance_within(self):
        one, other = (
            _Statistics(torch.tensor([m]).double(), torch.tensor([v]).double(), 0) for m, v in ((0, 1), (8, 3))
        )
        assert _merged(nn.InstanceNorm1d(1, track_running_stats=True), [one, other]).var.item() == 2
        assert _merged(nn.BatchNorm1d(1), [one, other]).var.item() == 2 + 16

    def test_ranks_with_other_layers_are_an_error_on_each(self):
        ok = _Statistics(torch.zeros(1).double(), torch.ones(1).double(), 1)
        both, one = {"a": (ok, False), "b": (ok, False)}, {"a": (ok, False)}
        for known in ({"a": nn.BatchNorm1d(1)}, {"a": nn.BatchNorm1d(1), "b": nn.BatchNorm1d(1)}):
            with pytest.raises(NormsError, match=r"rank 1 and rank 0 do not have the same layers: b"):
                _planned(known, [both, one])

    def test_held_on_one_rank_is_held_on_all(self):
        ok = _Statistics(torch.zeros(1).double(), torch.ones(1).double(), 1)
        merged, _, held = _planned({"a": nn.BatchNorm1d(1)}, [{"a": (ok, True)}, {"a": (ok, False)}])
        assert (merged, held) == ({}, ("a",))


def test_one_process_has_nothing_to_merge():
    model = nn.Sequential(nn.BatchNorm1d(2))
    before = model[0].running_mean.clone()
    report = merge_statistics(model)
    assert (report.world, report.layers, report.effect) == (1, {}, 0.0)
    assert str(report) == "one process: there is nothing to merge"
    report.undo()
    assert torch.equal(model[0].running_mean, before)


def test_the_report_prints_the_worst_first():
    rows = {"a": RankDifference(0.5, 2.0, 0.25), "b": RankDifference(3.0, 1.0, 1.5)}
    text = str(RankReport(2, rows, ("trunk.bn1", "trunk.bn2")))
    assert text.splitlines()[0] == "merged over 2 processes"
    assert text.index("\nb ") < text.index("\na ")
    assert "held, left alone: trunk.bn[1-2] (x2)" in text
    assert RankReport(2, rows).effect == 1.5
    assert "<td>b</td>" in RankReport(2, rows)._repr_html_()


# Started anew for each rank, so that nothing of the test process comes along.
RANKS = textwrap.dedent(
    """
    import copy, json, os, sys
    import torch, torch.distributed as dist
    from torch import nn
    import frostline as fl
    from frostline.norms import population_moments
    from frostline.norms.ranks import merge_statistics, rank_differences

    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4)).double()

    def data(rank, n):
        generator = torch.Generator().manual_seed(rank)
        return torch.randn(n, 3, dtype=torch.float64, generator=generator) + 4 * rank

    def numbers(moments):
        return {path: [m.count, m.mean.tolist(), m.var().tolist()] for path, m in moments.items()}

    def error_of(function):
        try:
            function()
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    # Uneven data: 30 samples here, 70 there, in batches of other sizes.
    sizes = (30, 70)
    mine = data(rank, sizes[rank])
    model = build()
    found["moments"] = numbers(population_moments(model, mine.split(10 + 7 * rank), upstream="running"))
    wrapped = nn.parallel.DistributedDataParallel(build())
    found["wrapped"] = numbers(population_moments(wrapped, mine.split(10 + 7 * rank), upstream="running"))
    alone = dist.new_group([0]), dist.new_group([1])
    found["alone"] = numbers(population_moments(model, [mine], upstream="running", process_group=alone[rank]))

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.second(self.both(x)) if rank else self.both(x)

    found["sometimes"] = numbers(population_moments(Sometimes().double(), [mine]))
    found["failed"] = error_of(lambda: population_moments(model, [mine] if rank == 0 else []))
    found["after failure"] = list(population_moments(model, [mine]))

    # Statistics of each rank's own, as without broadcasts.
    def trained(model, n=60):
        model.train()
        for batch in data(rank, n * 16).split(16):
            model(batch)
        return model

    def state(model):
        return {key: value.tolist() for key, value in model.state_dict().items() if "running" in key or "num" in key}

    model = trained(build())
    identities = [id(b) for b in model.buffers()]
    found["own"] = state(model)
    report = merge_statistics(model)
    found["merged"] = state(model)
    found["same buffers"] = identities == [id(b) for b in model.buffers()]
    found["report"] = {p: [d.mean, d.var, d.effect] for p, d in report.layers.items()}
    found["text"] = str(report)
    again = merge_statistics(model)
    found["again"] = [again.effect, state(model) == found["merged"]]
    report.undo()
    found["undone"] = state(model) == found["own"]
    report.undo()

    # Counters that differ, a hold, a selection, NaN.
    model = trained(build(), n=60 if rank == 0 else 20)
    found["counts own"] = state(model)
    merge_statistics(model)
    found["counts merged"] = state(model)
    model = trained(build())
    with fl.frozen(model, "0"):
        before = state(model)
        report = merge_statistics(model)
        found["held"] = [list(report.held), list(report.layers), {k: v == before[k] for k, v in state(model).items()}]
    model = trained(build())
    found["selected"] = list(merge_statistics(model, "2").layers)
    model = trained(build())
    if rank == 1:
        model[2].running_var[0] = float("nan")
    before = state(model)
    found["nan"] = [error_of(lambda: merge_statistics(model)), str(before) == str(state(model))]
    # The selectors of one rank leave a layer out.
    found["other layers"] = error_of(lambda: merge_statistics(model, *(["2"] if rank else [])))

    # DDP as it is: rank 0's statistics are broadcast before each forward pass, and reach the checkpoint.
    def ddp(**settings):
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
        model = nn.parallel.DistributedDataParallel(model, **settings)
        model.train()
        for batch in data(rank, 60 * 16).split(16):
            model(batch).square().sum().backward()
            model.zero_grad()
        return model

    model = ddp()
    found["ddp"] = state(model.module)
    merge_statistics(model)
    found["ddp merged"] = state(model.module)
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated for forward_sync_buffers from torch 2.13 on
        model = ddp(broadcast_buffers=False)
    found["ddp alone"] = state(model.module)
    merge_statistics(model)
    found["ddp alone merged"] = state(model.module)

    print(json.dumps(found), flush=True)
    # Interpreter teardown may abort in the reducer's threads, after everything that is tested here.
    dist.barrier()
    os._exit(0)
    """
)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("NOT TESTED: no gloo here")
    store = tmp_path_factory.mktemp("gloo") / "store"
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(Path(fl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANKS, str(rank), str(store)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def rank_data(rank, n):
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(n, 3, dtype=torch.float64, generator=generator) + 4 * rank


def near(found, expected, rtol=1e-10):
    found, expected = (torch.as_tensor(each, dtype=torch.float64) for each in (found, expected))
    return torch.allclose(found, expected, rtol=rtol, atol=1e-12)


@pytest.mark.slow
class TestMomentsOfTwoProcesses:
    @pytest.mark.parametrize("how", ["moments", "wrapped"])
    def test_are_those_of_the_union(self, two_ranks, how):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4)).double().eval()
        union = torch.cat([rank_data(0, 30), rank_data(1, 70)])
        inner = model[:2](union)
        assert two_ranks[0][how] == two_ranks[1][how]
        for path, values in (("0", union), ("2", inner)):
            count, mean, var = two_ranks[0][how][path]
            assert count == 100
            assert near(mean, values.mean(0).detach())
            assert near(var, values.var(0, unbiased=False).detach())

    def test_a_mean_over_ranks_would_not_be(self, two_ranks):
        union = torch.cat([rank_data(0, 30), rank_data(1, 70)])
        _, means, variances = zip(*(rank["alone"]["0"] for rank in two_ranks), strict=True)
        assert not near(torch.tensor(means).mean(0), union.mean(0), rtol=0.1)
        assert not near(torch.tensor(variances).mean(0), union.var(0), rtol=0.5)

    def test_a_group_of_one_is_alone(self, two_ranks):
        for rank, n in enumerate((30, 70)):
            count, mean, _ = two_ranks[rank]["alone"]["0"]
            assert count == n
            assert near(mean, rank_data(rank, n).mean(0))

    def test_a_layer_that_only_one_came_through(self, two_ranks):
        assert two_ranks[0]["sometimes"] == two_ranks[1]["sometimes"]
        assert two_ranks[0]["sometimes"]["both"][0] == 100
        assert two_ranks[0]["sometimes"]["second"][0] == 70

    def test_if_one_fails_no_other_waits_for_it(self, two_ranks):
        first, second = (rank["failed"] for rank in two_ranks)
        assert second.startswith("NoStatistics: the loader (list) yields no batch")
        assert first.startswith(
            "NormsError: process 1 could not measure its part of the data\n  NoStatistics: the loader"
        )
        assert all(rank["after failure"] == ["0", "2"] for rank in two_ranks)


def by_hand(ranks, key, weights=(0.5, 0.5)):
    """The law of total variance of what the two ranks had."""
    means, variances = (
        [torch.tensor(r[f"{key}.{name}"], dtype=torch.float64) for r in ranks]
        for name in ("running_mean", "running_var")
    )
    mean = sum(w * m for w, m in zip(weights, means, strict=True))
    var = sum(w * (v + (m - mean) ** 2) for w, v, m in zip(weights, variances, means, strict=True))
    return mean, var


@pytest.mark.slow
class TestMergeOfTwoProcesses:
    def test_by_the_law_of_total_variance_and_the_same_bits_on_both(self, two_ranks):
        own = [rank["own"] for rank in two_ranks]
        merged = two_ranks[0]["merged"]
        assert own[0] != own[1]
        assert merged == two_ranks[1]["merged"]
        for key in ("0", "2"):
            mean, var = by_hand(own, key)
            assert near(merged[f"{key}.running_mean"], mean)
            assert near(merged[f"{key}.running_var"], var)
            assert merged[f"{key}.num_batches_tracked"] == 60
        averaged = (torch.tensor(own[0]["0.running_var"]) + torch.tensor(own[1]["0.running_var"])) / 2
        assert not near(averaged, merged["0.running_var"], rtol=0.5), "averaging variances would do"

    def test_it_is_the_union_of_the_data(self, two_ranks):
        """To the noise of an average over 19 batches of 16."""
        var = torch.tensor(two_ranks[0]["merged"]["0.running_var"])
        assert near(two_ranks[0]["merged"]["0.running_mean"], torch.full((3,), 2.0), rtol=0.2)
        assert near(var, torch.full((3,), 5.0), rtol=0.2)

    def test_in_the_same_buffers_and_undone(self, two_ranks):
        for rank in two_ranks:
            assert rank["same buffers"]
            assert rank["undone"]

    def test_the_report_is_that_of_the_states(self, two_ranks):
        torch.manual_seed(0)
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
        states = [{key: torch.tensor(value) for key, value in rank["own"].items()} for rank in two_ranks]
        expected = rank_differences(tracked_layers(model), states)
        for rank in two_ranks:
            for path, figures in rank["report"].items():
                assert figures == pytest.approx(
                    [expected[path].mean, expected[path].var, expected[path].effect], rel=1e-5
                )
            assert rank["report"]["0"][2] > 1
            assert rank["text"].startswith("merged over 2 processes\nlayer")

    def test_a_second_time_changes_nothing(self, two_ranks):
        assert all(rank["again"] == [0.0, True] for rank in two_ranks)

    def test_counters_that_differ(self, two_ranks):
        own = [rank["counts own"] for rank in two_ranks]
        assert [each["0.num_batches_tracked"] for each in own] == [60, 20]
        mean, var = by_hand(own, "0", (0.75, 0.25))
        merged = two_ranks[1]["counts merged"]
        assert merged == two_ranks[0]["counts merged"]
        assert near(merged["0.running_mean"], mean)
        assert near(merged["0.running_var"], var)
        assert merged["0.num_batches_tracked"] == 60

    def test_held_layers_are_left_alone(self, two_ranks):
        for rank in two_ranks:
            held, merged, still = rank["held"]
            assert (held, merged) == (["0"], ["2"])
            assert all(same == key.startswith("0.") or "num" in key for key, same in still.items())

    def test_a_selection(self, two_ranks):
        assert all(rank["selected"] == ["2"] for rank in two_ranks)

    def test_errors_are_raised_on_both_and_nothing_is_written(self, two_ranks):
        for rank in two_ranks:
            error, untouched = rank["nan"]
            assert error.startswith(
                "NonFiniteStatistics: layer '2' (BatchNorm1d): its running statistics on rank 1 are NaN"
            )
            assert untouched
            assert rank["other layers"].startswith("NormsError: rank 1 and rank 0 do not have the same layers: 0")

    def test_ddp_as_it_is_ignores_rank_1(self, two_ranks):
        """The naive twin: the true mean is 2, the checkpoint of rank 0 says 0."""
        first, second = (torch.tensor(rank["ddp"]["0.running_mean"]) for rank in two_ranks)
        assert bool((first.abs() < 0.3).all())
        # Rank 1 holds what was broadcast, and a tenth of its own last batch.
        assert bool(((second - 0.4).abs() < 0.3).all())
        merged = torch.tensor(two_ranks[0]["ddp merged"]["0.running_mean"])
        assert bool((merged < 0.5).all()), "what was overwritten cannot be merged"

    def test_ddp_without_broadcasts_and_merged_is_right(self, two_ranks):
        first, second = (torch.tensor(rank["ddp alone"]["0.running_mean"]) for rank in two_ranks)
        assert bool((first.abs() < 0.3).all())
        assert bool(((second - 4).abs() < 0.3).all())
        merged = two_ranks[0]["ddp alone merged"]
        assert merged == two_ranks[1]["ddp alone merged"]
        assert near(merged["0.running_mean"], torch.full((3,), 2.0), rtol=0.15)
        assert near(merged["0.running_var"], torch.full((3,), 5.0), rtol=0.15)


def test_merging_statistics_that_are_not_finite():
    ok, bad = (_Statistics(torch.zeros(1).double(), torch.tensor([v]).double(), 1) for v in (1.0, float("inf")))
    with pytest.raises(NonFiniteStatistics, match=r"layer 'a' .* on rank 1"):
        _planned({"a": nn.BatchNorm1d(1)}, [{"a": (ok, False)}, {"a": (bad, False)}])
