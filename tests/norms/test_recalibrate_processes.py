"""Recalibration in two processes: the data of both counts, both write the same, and both fail together (gloo)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

import frostline as fl
from frostline.norms.recalibrate import recalibrate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="NOT TESTED: no gloo here"),
]

# What each rank and the test itself run: 120 rows, 70 of them in rank 0 and 50, of another kind, in rank 1.
SETUP = textwrap.dedent(
    """
    import torch
    from torch import nn

    def build():
        torch.manual_seed(0)
        layers = [nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)]
        return nn.Sequential(*layers).double()

    torch.manual_seed(1)
    x = torch.cat([torch.randn(70, 4), 4 + torch.randn(50, 4)]).double()
    """
)
RANK = SETUP + textwrap.dedent(
    """
    import json, os, sys
    import torch.distributed as dist
    from frostline.errors import NormsError
    from frostline.norms.recalibrate import recalibrate

    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mine = list((x[:70] if rank == 0 else x[70:]).split(10))
    found = {}

    def norms(model):
        return [[*layer.running_mean.tolist(), *layer.running_var.tolist()] for layer in (model[1], model[4])]

    for method in ("all-at-once", "eval-consistent"):
        model = build()
        result = recalibrate(nn.parallel.DistributedDataParallel(model), mine, method=method)
        found[method] = norms(model)
        found["samples"] = result.plan.samples
        found["residual"] = result.rows[1].residual_var
        found["count"] = result.rows[0].count

    # The metric gets better in rank 0 and as much worse, on more samples, in rank 1: together it gets worse.
    model = build()
    scores = iter([0.0, 1.0] if rank == 0 else [1.0, 0.0])
    held_out = [(mine[0][: 4 + rank], torch.zeros(4 + rank, dtype=torch.long))]
    result = recalibrate(model, mine, metric=lambda output, labels: next(scores), held_out=held_out)
    found["accepted"], found["difference"] = result.accepted, result.difference.value
    found["rolled back"] = norms(model) == norms(build())

    for method in ("all-at-once", "eval-consistent"):
        model = build()
        broken = [batch.clone() for batch in mine]
        if rank == 1:
            broken[2][0, 0] = float("nan")
        try:
            recalibrate(model, broken, method=method)
        except NormsError as error:
            found[f"error, {method}"] = str(error)
        found[f"untouched, {method}"] = norms(model) == norms(build())
    print(json.dumps(found), flush=True)
    dist.barrier()
    os._exit(0)
    """
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    store = tmp_path_factory.mktemp("gloo") / "store"
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(Path(fl.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, str(rank), str(store)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.fixture(scope="module")
def alone():
    scope = {"torch": torch, "nn": nn}
    exec(SETUP, scope)
    return scope["build"], scope["x"]


def statistics(model):
    return [torch.cat([layer.running_mean, layer.running_var]) for layer in (model[1], model[4])]


@pytest.mark.parametrize("method", ["all-at-once", "eval-consistent"])
def test_both_write_the_statistics_of_the_union(ranks, alone, method):
    build, x = alone
    assert ranks[0][method] == ranks[1][method]  # to the bit
    model = build()
    recalibrate(model, list(x.split(10)), method=method)
    # Merged in another order: the rounding of float64 over a hundred values.
    for ours, expected in zip(ranks[0][method], statistics(model), strict=True):
        torch.testing.assert_close(torch.tensor(ours, dtype=torch.float64), expected, rtol=1e-12, atol=1e-12)
    assert [rank["samples"] for rank in ranks] == [120, 120]
    assert [rank["count"] for rank in ranks] == [120, 120]
    assert ranks[0]["residual"] < 1e-12
    # The naive twin: what rank 0 alone has seen, which is what a checkpoint of DDP holds.
    twin = build()
    recalibrate(twin, list(x[:70].split(10)), method=method)
    assert not torch.allclose(statistics(twin)[0], statistics(model)[0], rtol=0.1)


def test_both_come_to_the_same_decision_from_all_scores(ranks):
    assert [rank["accepted"] for rank in ranks] == [False, False]
    assert ranks[0]["difference"] == ranks[1]["difference"] == pytest.approx((4 - 5) / 9)
    assert all(rank["rolled back"] for rank in ranks)


@pytest.mark.parametrize("method", ["all-at-once", "eval-consistent"])
def test_if_one_fails_both_fail_and_nothing_is_written(ranks, method):
    assert "process 1 failed, so nothing was done in this one either" in ranks[0][f"error, {method}"]
    assert "batch 2: the input of layer '1'" in ranks[0][f"error, {method}"]
    assert ranks[1][f"error, {method}"].startswith("batch 2: the input of layer '1'")
    assert all(rank[f"untouched, {method}"] for rank in ranks)
