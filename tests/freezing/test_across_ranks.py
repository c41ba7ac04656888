"""Comparing what the processes of a run hold: on two processes of a real torchrun, and on one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn

import frostline as fl
from frostline.errors import NothingSelected
from frostline.freezing.across_ranks import in_every, verify_ranks
from frostline.freezing.found_holds import levels_of

sys.path.insert(0, str(Path(__file__).parents[1] / "launch"))
from two_ranks import on_two_ranks

BODY = """
from frostline.errors import RanksDiffer
from frostline.freezing.across_ranks import in_every, verify_ranks
import frostline.norms.processes as processes
import pickle

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
        self.head = nn.Linear(64, 2)

def told(model, *selectors, **settings):
    try:
        return str(verify_ranks(model, *selectors, **settings))
    except Exception as error:
        return [type(error).__name__, str(error), getattr(getattr(error, "comparison", None), "paths", None)]

def changed(change, hold="trunk", **settings):
    net = Net()
    if hold:
        fl.freeze(net, hold)
    with torch.no_grad():
        if rank == 1:
            change(net)
    return told(net, **settings)

sent = []
original = dist.all_gather_object
def counted(into, value, group=None):
    sent.append(len(pickle.dumps(value)))
    return original(into, value, group=group)
dist.all_gather_object = counted

net = Net()
fl.freeze(net, "trunk")
found["same"] = told(net)
found["sent"], found["bytes"] = sent[:], sum(t.nbytes for t in net.state_dict().values())
found["everything"] = told(net, what="everything")
found["a part"] = told(net, "trunk.1")
found["mine alone is no proof"] = str(fl.snapshot(net).diff(net))

def weight(net): net.trunk[0].weight[3, 3] += 1e-6
def head(net): net.head.weight[0, 0] += 1
def mean(net): net.trunk[1].running_mean += 1
def mode(net): net.trunk[1].training = True
def flag(net): net.trunk[0].weight.requires_grad_(True)
def also(net): fl.freeze(net, "head")
def level(net):
    for hold in fl.freezing.holds_on(net): hold.thaw()
    fl.freeze(net, "trunk", level="grad")
def thaw(net): fl.freezing.holds_on(net)[0].thaw("trunk.1")
def wider(net): net.head = nn.Linear(64, 3)
def extra(net): net.more = nn.Linear(1, 1)
for change in (weight, mean, mode, flag, also, level, thaw):
    found[change.__name__] = changed(change)
found["head"] = changed(head), changed(head, what="everything")
found["wider"] = changed(wider, what="everything")
found["extra"] = changed(extra, what="everything")
found["no hold anywhere"] = changed(head, hold=None)

# What fails on one rank stops both, and neither waits for the other.
found["fails on rank 1"] = told(net, "trunk" if rank == 0 else "tronk")
lazy = nn.Sequential(nn.Linear(2, 2) if rank == 0 else nn.Linear(2, 2, device="meta"))
found["no bytes on rank 1"] = told(lazy, what="everything")
found["in every"] = in_every(lambda: rank, "here")

# Part of the ranks.
alone = [dist.new_group([each]) for each in range(world)][rank]
found["group of one"] = told(net, process_group=alone)

# Shards differ by rank, and are left out.
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
sharded = Net()
fully_shard(sharded.trunk, mesh=init_device_mesh("cpu", (world,)))
fl.freeze(sharded, "trunk")
found["sharded"] = told(sharded)
if rank == 1:
    with torch.no_grad():
        sharded.trunk[1].running_var += 1
found["buffer beside shards"] = told(sharded)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks(tmp_path_factory.mktemp("ranks"), BODY)


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="NOT TESTED: no gloo here")
class TestTwoRanks:
    def test_the_same_on_both(self, ranks):
        for rank in ranks:
            assert rank["same"] == "2 processes hold the same: 18 state entries, 18 of them held"
            assert rank["everything"] == "2 processes hold the same: 24 state entries, 18 of them held"
            assert rank["a part"] == "2 processes hold the same: 12 state entries, 12 of them held"

    def test_one_digest_travels(self, ranks):
        """And no tensor: less than one row of the weight takes, however large the model is."""
        for rank in ranks:
            assert len(rank["sent"]) == 1
            assert rank["sent"][0] < 200 < rank["bytes"] / 80

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("weight", "other values: trunk.0.weight (rank 0: "),
            ("mean", "other values: trunk.1.running_mean (rank 0: "),
            ("mode", "other mode: trunk.1.training (rank 0: False, rank 1: True)"),
            ("flag", "other requires_grad: trunk.0.weight.requires_grad (rank 0: False, rank 1: True)"),
            ("also", "rank 0 does not hold head.weight, head.weight.requires_grad, head.bias"),
            ("level", "held at other levels: trunk.[0-1].weight (x2)"),
            ("thaw", "rank 1 does not hold trunk.training, trunk.1.weight"),
        ],
    )
    def test_each_difference_is_named_on_both_ranks(self, ranks, change, said):
        for rank in ranks:
            kind, message, paths = rank[change]
            assert kind == "RanksDiffer"
            assert said in message
            assert "fix:" in message
            assert paths

    def test_a_rank_alone_sees_nothing(self, ranks):
        """The naive twin: each process compares with itself, and finds what it has."""
        assert all(rank["mine alone is no proof"].startswith("nothing moved") for rank in ranks)

    def test_what_is_not_held_counts_only_where_everything_does(self, ranks):
        for rank in ranks:
            held, everything = rank["head"]
            assert held == "2 processes hold the same: 18 state entries, 18 of them held"
            assert everything[2] == ["head.weight"]
            assert "2 processes hold the same: 0 state entries" in rank["no hold anywhere"]

    def test_other_models(self, ranks):
        for rank in ranks:
            assert "of another shape or dtype: head.weight" in rank["wider"][1]
            assert "rank 0 does not have more.weight" in rank["extra"][1]

    def test_an_error_on_one_rank_stops_both(self, ranks):
        first, second = ranks
        assert first["fails on rank 1"][0] == "RanksDiffer"
        assert "rank 1 failed" in first["fails on rank 1"][1]
        assert "NothingSelected" in first["fails on rank 1"][1]
        assert second["fails on rank 1"][0] == "NothingSelected"
        assert second["no bytes on rank 1"][0] == "CannotDigest"
        assert first["no bytes on rank 1"][0] == "RanksDiffer"
        assert first["in every"] == second["in every"] == [0, 1]

    def test_a_group_of_one(self, ranks):
        assert all(rank["group of one"] == "one process: there is nothing to compare" for rank in ranks)

    def test_shards_are_named_and_left_out(self, ranks):
        for rank in ranks:
            assert rank["sharded"].splitlines() == [
                "2 processes hold the same: 18 state entries, 18 of them held",
                "  sharded, so not compared by value: trunk.[0-1].weight (x2), trunk.[0-1].bias (x2)",
            ]
            assert rank["buffer beside shards"][2] == ["trunk.1.running_var"]


def test_one_process():
    comparison = verify_ranks(nn.Linear(1, 1), what="everything")
    assert comparison.world == 1
    assert str(comparison) == "one process: there is nothing to compare"


def test_in_one_process_an_error_is_itself():
    with pytest.raises(NothingSelected):
        in_every(lambda: fl.state.select(nn.Linear(1, 1), "none"), "here")


class TestLevelsOf:
    def test_all_that_a_hold_has(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        hold = fl.freeze(model, "0", "1")
        assert set(levels_of(model)) == set(hold.paths)
        assert set(levels_of(model).values()) == {("state",)}

    def test_several_holds_and_what_is_left_of_them(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        hold = fl.freeze(model, "*")
        fl.freeze(model, "0", level="grad")
        assert levels_of(model)["0.weight"] == ("grad", "state")
        hold.thaw("1")
        assert {path.split(".")[0] for path in levels_of(model)} == {"0"}
        hold.thaw()
        assert set(levels_of(model).values()) == {("grad",)}

    def test_nothing(self):
        assert levels_of(nn.Linear(1, 1)) == {}
