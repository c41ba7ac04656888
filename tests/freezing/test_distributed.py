"""Holds under DistributedDataParallel and FSDP2 (rows F14 and F25), on gloo and 127.0.0.1."""

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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="NOT TESTED: no gloo here"),
]

# Started anew for each rank, so that nothing of the test process comes along.
RANKS = textwrap.dedent(
    """
    import json, os, sys
    import torch, torch.distributed as dist
    from torch import nn
    import frostline as fl

    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def backward(model):
        torch.manual_seed(rank)  # each rank sees other data
        model(torch.randn(8, 4)).square().sum().backward()

    found = {}
    model = build()
    model[0].requires_grad_(False)
    wrapped = nn.parallel.DistributedDataParallel(model)
    model[0].requires_grad_(True)
    backward(wrapped)
    found["thawed after wrap"] = model[0].weight.grad.sum().item()

    model = build()
    wrapped = nn.parallel.DistributedDataParallel(model)
    model[0].requires_grad_(False)
    try:
        for _ in range(2):
            backward(wrapped)
    except RuntimeError as error:
        found["frozen after wrap"] = str(error)

    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    hold = fl.freeze(model, "0", "1", optimizer=optimizer)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(3):
        wrapped.train()
        backward(wrapped)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    hold.verify()
    hold.verify("buffers")
    found["held"] = [p.detach().tolist() for p in model.parameters()]
    found["start"] = [p.detach().tolist() for p in build().parameters()]
    print(json.dumps(found), flush=True)
    # The reducer of the naive freeze never finished: when the interpreter takes it down, its threads may abort the
    # process ("terminate called without an active exception"), after everything that is tested here.
    dist.barrier()
    os._exit(0)
    """
)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
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


class TestF14:
    def test_a_naive_thaw_after_wrapping_leaves_the_ranks_apart_without_an_error(self, two_ranks):
        assert two_ranks[0]["thawed after wrap"] != two_ranks[1]["thawed after wrap"]

    def test_a_naive_freeze_after_wrapping_fails(self, two_ranks):
        assert all("Expected to have finished reduction" in rank["frozen after wrap"] for rank in two_ranks)

    def test_a_hold_before_wrapping_holds_and_the_ranks_agree(self, two_ranks):
        first, second = two_ranks
        assert first["held"] == second["held"]
        assert first["held"][:4] == first["start"][:4]
        assert first["held"][4:] != first["start"][4:]


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()), nn.Linear(4, 2))


def test_a_wrapped_model_is_looked_through(process_group):
    model = build()
    hold = fl.freeze(nn.parallel.DistributedDataParallel(model), "0")
    wrapped = nn.parallel.DistributedDataParallel(model)
    wrapped.train()
    wrapped(torch.randn(8, 4)).sum().backward()
    assert model.training
    hold.verify()


@pytest.fixture
def shard(process_group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))

    def apply(model):
        fully_shard(model[0], mesh=mesh)
        return fully_shard(model, mesh=mesh)

    return apply


class TestF25:
    """`fully_shard` swaps classes itself and makes every parameter anew."""

    @pytest.mark.parametrize("kind", ["soft", "hard"])
    @pytest.mark.parametrize("order", ["freeze first", "shard first"])
    def test_modes_flags_and_values(self, shard, kind, order):
        model = build()
        types = [type(m) for m in model.modules()]
        if order == "freeze first":
            hold = fl.freeze(model, "0", lock=kind)
        shard(model)
        if order == "shard first":
            hold = fl.freeze(model, "0", lock=kind)
        assert type(model).__name__ == "FSDPSequential"
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = {n: t.detach().full_tensor().clone() for n, t in model.named_parameters()}
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        for _ in range(2):
            model.train()
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert [m.training for m in model[0].modules()] == [False] * 4
        assert model.training
        assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True] * 2
        after = {n: t.detach().full_tensor() for n, t in model.named_parameters()}
        assert {n for n in before if not torch.equal(before[n], after[n])} == {"1.weight", "1.bias"}
        assert all(torch.equal(buffer, buffers[n]) for n, buffer in model.named_buffers())
        hold.thaw()
        assert all(p.requires_grad for p in model.parameters())
        assert all(m.training for m in model.train().modules())
        assert all(isinstance(m, t) for m, t in zip(model.modules(), types, strict=True))

    def test_naive_eval_does_not_last(self, shard):
        model = build()
        model[0].requires_grad_(False).eval()
        shard(model)
        model.train()(torch.randn(8, 4))
        assert model[0][1].num_batches_tracked == 1

    @pytest.mark.parametrize("order", ["freeze first", "shard first"])
    def test_verify(self, shard, order):
        model = build()
        if order == "freeze first":
            hold = fl.freeze(model, "0")
            shard(model)
            hold.refresh()  # every parameter is another object now
        else:
            shard(model)
            hold = fl.freeze(model, "0")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        model.train()(torch.randn(8, 4)).sum().backward()
        optimizer.step()
        hold.verify()
