"""Holds, snapshots and checkpoints of models that FSDP2 or tensor parallelism has sharded, on two real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from two_ranks import on_two_ranks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="NOT TESTED: no gloo here"),
]

BODY = """
import torch.distributed.checkpoint as dcp
from frostline.checkpoint import ClassRows, open_checkpoint, plan_load
from frostline.checkpoint.save_distributed import save_distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

warnings.simplefilter("ignore")
mesh = init_device_mesh("cpu", (world,))
at = os.environ["FOUND"]

def build(seed=0, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout()), nn.Linear(5, classes))

def shard(model):
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)

def step(model, optimizer):
    model.train()
    torch.manual_seed(rank)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)

def full(model):
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    everywhere = [None, None]
    dist.all_gather_object(everywhere, state)
    return everywhere[0]

def same(one, other, names=None):
    return all(torch.equal(one[n], other[n]) for n in (names or one))

def said(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""

adamw = lambda ps: torch.optim.AdamW(ps, lr=0.1, weight_decay=0.5)
sgd = lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9)
start = build().state_dict()

for order in ("freeze first", "shard first", "after a step", "naive"):
    for name, make in (("adamw", adamw), ("sgd", sgd)):
        case = found[f"{order}, {name}"] = {}
        model = build()
        if order == "freeze first":
            hold = fl.freeze(model, "0")
        shard(model)
        optimizer = make(model.parameters())
        if order == "freeze first":
            case["before refresh"] = sorted({row.change for row in hold.diff().moved})
            hold.refresh()
        elif order == "shard first":
            hold = fl.freeze(model, "0", optimizer=optimizer)
        else:
            step(model, optimizer)
            if order == "naive":
                model[0].requires_grad_(False).eval()
            else:
                fl.norms.merge_statistics(model)  # each process has seen other data
                hold = fl.freeze(model, "0", optimizer=optimizer)
        before = full(model)
        for _ in range(3):
            step(model, optimizer)
        after = full(model)
        case["moved"] = [n for n in before if not torch.equal(before[n], after[n])]
        case["modes"] = [m.training for m in model.modules()]
        case["flags"] = [p.requires_grad for p in model.parameters()]
        if order != "naive":
            case["verified"] = hold.verify().still
            case["ranks"] = said(lambda: fl.freezing.verify_ranks(model))
            hold.thaw()
            case["thawed"] = [p.requires_grad for p in model.parameters()] + [model.train()[0].training]
            thawed = full(model)
            step(model, optimizer)
            now = full(model)
            case["trains again"] = [n for n, p in model.named_parameters() if not torch.equal(thawed[n], now[n])]

# Part of what one unit gathers is held.
model = build()
hold = fl.freeze(model, "1.bias", level="grad")
shard(model)
hold.refresh()
optimizer = sgd(model.parameters())
for _ in range(2):
    step(model, optimizer)
hold.verify()
found["mixed"] = [p.grad is None for p in model[1].parameters()], torch.equal(full(model)["1.bias"], start["1.bias"])

# Looked at while FSDP2 has whole parameters in the place of shards, by one process alone.
case = found["gathered"] = {}
model = shard(build())
hold = fl.freeze(model, "1", level="grad")
taken = fl.snapshot(model, values=True)
model.eval()(torch.randn(2, 4))
case["kinds"] = [type(p).__name__ for p in model[1].parameters()]
if rank == 0:
    case["verified"] = hold.verify().still
    case["snapshot"] = len(fl.snapshot(model))
model.train()[0].eval()
loss = model(torch.randn(2, 4)).sum()
if rank == 0:
    hold.verify()
case["backward"] = said(loss.backward)
with torch.no_grad():
    model[1].weight.to_local().add_(1)
model.eval()(torch.randn(2, 4))
case["moved"] = hold.diff().paths
taken.restore(model)
case["restored"] = same(full(model), start)
optimizer = sgd(model.parameters())
step(model, optimizer)
hold.thaw()
model.eval()(torch.randn(2, 4))
again = fl.freeze(model, "1", optimizer=optimizer)
step(model, optimizer)
case["frozen while gathered"] = said(again.verify), [p.requires_grad for p in model[1].parameters()]
model.eval()(torch.randn(2, 4))
again.thaw()
model.train()(torch.randn(2, 4)).sum().backward()
case["thawed while gathered"] = [p.requires_grad and p.grad is not None for p in model[1].parameters()]
model.eval()(torch.randn(2, 4))
model[1].requires_grad_(False)
model.reshard()
case["naive freeze"] = [p.requires_grad for p in model[1].parameters()]
naive = shard(build())
loss = naive(torch.randn(2, 4)).sum()
naive[1].weight.detach().numpy()
case["naive"] = said(loss.backward)

# One shard that moved on one process is seen there, and nobody waits for anybody.
case = found["one shard"] = {}
model = shard(build())
hold = fl.freeze(model, "0", "1")
taken = fl.snapshot(model, values=True)
if rank == 1:
    with torch.no_grad():
        model[1].weight.to_local().view(-1)[:1].add_(1)
    case["verify"] = said(hold.verify)
    case["diff"] = [(row.path, row.change, row.max_abs) for row in taken.diff(model).moved]
    taken.restore(model)
    case["restored"] = said(hold.verify)
case["all"] = said(hold.verify)
case["inventory"] = fl.inventory(model)["1.weight"].shown
case["explain"] = str(fl.explain(model)).splitlines()[-1].split()

# Strategies that make parameters anew.
case = found["anew"] = {}
model = build()
hold = fl.freeze(model, "0", "1")
parallelize_module(model, mesh, {"0.0": ColwiseParallel(), "1": RowwiseParallel()})
case["parallelize"] = sorted({(row.path, row.change) for row in hold.diff().moved})
case["parallelize flags"] = [p.requires_grad for p in model.parameters()]
hold.refresh()
case["refreshed"] = said(hold.verify), [p.requires_grad for p in model.parameters()]
model = build()
hold = fl.freeze(model, "0", "1")
model[1].weight = nn.Parameter(distribute_tensor(model[1].weight.detach(), mesh, [Shard(0)]))
case["by hand"] = sorted({(row.path, row.change) for row in hold.diff().moved})
case["told"] = said(hold.verify)
hold.refresh()
optimizer = sgd([model[1].weight])
model[1].weight.to_local()
optimizer.step()
case["held again"] = said(hold.verify), model[1].weight.requires_grad

# Checkpoints.
case = found["read"] = {}
model = shard(build(1))
dcp.save({"model": model.state_dict(), "epoch": 2}, checkpoint_id=f"{at}/torch")
whole = full(model)
opened = open_checkpoint(f"{at}/torch")
case["equal"] = same(opened.read_all(), whole), list(opened.tensors) == list(whole), len(opened.files)
case["pieces"] = all(e.digest() == opened.tensors[n].digest() for n, e in opened.tensors.items())

case = found["load"] = {}
target = shard(build())
target.eval()(torch.randn(2, 4))
identities = [id(p) for p in target.parameters()]
report = plan_load(target, f"{at}/torch").apply()
case["equal"] = same(full(target), whole), report.coverage
if rank == 0:
    torch.save(build(2).state_dict(), f"{at}/other.pt")
    torch.save(build(2, classes=6).state_dict(), f"{at}/wide.pt")
    broken = build(3).state_dict()
    broken["1.bias"][0] = float("nan")
    torch.save(broken, f"{at}/nan.pt")
dist.barrier()
before = fl.snapshot(target)
case["one fails"] = said(lambda: plan_load(target, f"{at}/{('other', 'nan')[rank]}.pt").apply())
case["other values"] = said(lambda: plan_load(target, f"{at}/other.pt" if rank else f"{at}/torch").apply())
case["one holds"] = said(lambda: plan_load(target, f"{at}/torch", keep="1" if rank else ()).apply())
case["still"] = not before.diff(target)
names = ClassRows(list("abcdef"), list("xfb"))
own = full(target)["1.weight"]
plan_load(target, f"{at}/wide.pt", adapt={"1": names}).apply()
rows = torch.stack([own[0], build(2, classes=6)[1].weight[5], build(2, classes=6)[1].weight[1]])
case["rows"] = torch.equal(full(target)["1.weight"], rows)
plain = build(3)
plan_load(plain, target).apply()
case["from a sharded model"] = same(plain.state_dict(), full(target))

case = found["written"] = {}
case["count"] = save_distributed(model, f"{at}/ours")
case["files"] = sorted(os.listdir(f"{at}/ours"))
like = {n: torch.zeros_like(v) for n, v in whole.items()}
if rank == 0:
    found_by_torch = like
    dcp.load(found_by_torch, checkpoint_id=f"{at}/ours", no_dist=True)
    case["torch, in one process"] = same(found_by_torch, whole)
dist.barrier()
resharded = shard(build())
state = resharded.state_dict()
dcp.load(state, checkpoint_id=f"{at}/ours")
case["torch, in shards"] = same(full(resharded), whole)
fl.freeze(model, "0")
case["held"] = save_distributed(model, f"{at}/held", what="held"), sorted(open_checkpoint(f"{at}/held").tensors)
case["trainable"] = save_distributed(model, f"{at}/trainable", take="1", what="trainable")
case["there"] = said(lambda: save_distributed(model, f"{at}/ours"))
case["one fails"] = said(lambda: save_distributed(model, f"{at}/no", take="1" if rank else "head"))
with torch.no_grad():
    model[0][1].running_mean.add_(rank)
case["statistics"] = said(lambda: save_distributed(model, f"{at}/no"))
case["unwritable"] = said(lambda: save_distributed({"a": 1 if rank else (lambda: 0), "b": torch.ones(1)}, f"{at}/no"))
dist.barrier()
case["left"] = sorted(name for name in os.listdir(at) if "no" in name or "partial" in name)

# The doctor.
def examined(loop):
    model = build()
    with fl.watch(model=model) as seen:
        loop(model)
    return sorted({finding.code for finding in fl.examine(seen) if finding.code[:2] == "D8"})

def sound(model):
    hold = fl.freeze(model, "0")
    shard(model)
    hold.refresh()
    optimizer = sgd(model.parameters())
    for _ in range(2):
        step(model, optimizer)

def lost_flags(model):
    parameters = list(model[0].parameters())
    shard(model)
    for parameter in parameters:
        parameter.requires_grad_(False)
    optimizer = sgd(model.parameters())
    for _ in range(2):
        step(model, optimizer)

def early_optimizer(model):
    optimizer = sgd(model.parameters())
    shard(model)
    for _ in range(2):
        step(model, optimizer)

found["doctor"] = {loop.__name__: examined(loop) for loop in (sound, lost_flags, early_optimizer)}
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("sharded")
    return on_two_ranks(folder, BODY)


TRAINS = ["1.weight", "1.bias"]
HELD = ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
class TestFullyShard:
    @pytest.mark.parametrize("order", ["freeze first", "shard first", "after a step"])
    def test_what_is_held_does_not_move(self, ranks: Any, order: str, optimizer: str):
        for case in (rank[f"{order}, {optimizer}"] for rank in ranks):
            assert case["moved"] == TRAINS
            assert case["modes"] == [True, False, False, False, False, True]
            assert case["flags"] == [False] * 4 + [True] * 2
            assert case["verified"] > 10
            assert case["ranks"] == ""
            assert case["thawed"] == [True] * 7
            assert case["trains again"] == [*HELD, *TRAINS]

    def test_a_hold_from_before_names_what_was_sharded(self, ranks: Any, optimizer: str):
        assert [rank[f"freeze first, {optimizer}"]["before refresh"] for rank in ranks] == [["resharded"]] * 2

    def test_the_naive_way_moves_what_it_froze(self, ranks: Any, optimizer: str):
        assert {*HELD, "0.1.running_mean"} < set(ranks[0][f"naive, {optimizer}"]["moved"])


def test_a_part_of_a_unit(ranks: Any):
    assert [rank["mixed"] for rank in ranks] == [[[False, True], True]] * 2


class TestGathered:
    """Between the forward and the backward pass the outermost unit has whole parameters."""

    def test_verify_looks_at_the_part_that_is_held_here(self, ranks: Any):
        assert [rank["gathered"]["kinds"] for rank in ranks] == [["Parameter", "Parameter"]] * 2
        assert ranks[0]["gathered"]["verified"] == 4
        assert ranks[0]["gathered"]["snapshot"] > 20

    def test_the_step_goes_on_after_a_look(self, ranks: Any):
        assert [rank["gathered"]["backward"] for rank in ranks] == ["", ""]

    def test_freezing_and_thawing_reach_the_shards(self, ranks: Any):
        assert [rank["gathered"]["frozen while gathered"] for rank in ranks] == [["", [False, False]]] * 2
        assert [rank["gathered"]["thawed while gathered"] for rank in ranks] == [[True, True]] * 2

    def test_a_flag_on_a_gathered_parameter_is_lost(self, ranks: Any):
        assert [rank["gathered"]["naive freeze"] for rank in ranks] == [[True, True]] * 2

    def test_a_look_by_numpy_ends_the_step(self, ranks: Any):
        assert all("Trying to resize storage" in rank["gathered"]["naive"] for rank in ranks)

    def test_what_moved_is_found_and_restored_for_good(self, ranks: Any):
        assert [rank["gathered"]["moved"] for rank in ranks] == [["1.weight"]] * 2
        assert [rank["gathered"]["restored"] for rank in ranks] == [True, True]


def test_a_shard_that_moved_on_one_process(ranks: Any):
    first, second = (rank["one shard"] for rank in ranks)
    assert "verify" not in first
    assert "1 of " in second["verify"]
    assert "held entries moved: 1.weight" in second["verify"]
    assert second["diff"] == [["1.weight", "changed", 1.0]]
    assert [first["all"], second["restored"], second["all"]] == ["", "", ""]
    assert first["inventory"] == "3x5 float32"
    assert first["explain"][:3] == ["1", "Linear", "no"]


class TestMadeAnew:
    def test_parallelize_module(self, ranks: Any):
        for case in (rank["anew"] for rank in ranks):
            assert ["0.0.weight", "resharded"] in case["parallelize"]
            # Older versions of torch thaw them (pytorch#171709); then their flags are named.
            named = {path for path, _ in case["parallelize"]}
            assert all(case["parallelize flags"]) is False
            assert any(case["parallelize flags"]) is any(path.endswith(".requires_grad") for path in named)
            assert case["refreshed"] == ["", [False] * 6]

    def test_a_parameter_that_trains_again_is_named_and_held_again(self, ranks: Any):
        for case in (rank["anew"] for rank in ranks):
            assert case["by hand"] == [["1.weight", "resharded"], ["1.weight.requires_grad", "changed"]]
            assert case["told"].startswith("FrozenStateMoved: 2 of ")
            assert case["held again"] == ["", False]


class TestCheckpoints:
    def test_of_shards_are_read_as_a_whole(self, ranks: Any):
        for case in (rank["read"] for rank in ranks):
            assert case["equal"] == [True, True, 3]
            assert case["pieces"]

    def test_a_plan_writes_each_shard(self, ranks: Any):
        assert [rank["load"]["equal"] for rank in ranks] == [[True, 1.0]] * 2

    def test_an_error_in_one_process_leaves_all_as_they_were(self, ranks: Any):
        first, second = (rank["load"] for rank in ranks)
        assert "values are NaN or infinite" in second["one fails"]
        assert "process 1 failed, so nothing was changed in this one either" in first["one fails"]
        assert all("would load different values" in case["other values"] for case in (first, second))
        assert all("would load different values" in case["one holds"] for case in (first, second))
        assert first["still"]
        assert second["still"]

    def test_an_operation_that_keeps_a_part_of_what_is_sharded(self, ranks: Any):
        assert [rank["load"]["rows"] for rank in ranks] == [True, True]

    def test_a_sharded_model_as_the_source(self, ranks: Any):
        assert [rank["load"]["from a sharded model"] for rank in ranks] == [True, True]

    def test_each_process_writes_its_shards(self, ranks: Any):
        for case in (rank["written"] for rank in ranks):
            assert case["count"] == 9
            assert case["files"] == [".metadata", "__0_0.distcp", "__1_0.distcp"]
            assert case["torch, in shards"]
        assert ranks[0]["written"]["torch, in one process"]

    def test_a_part(self, ranks: Any):
        held = sorted([*HELD, "0.1.num_batches_tracked", "0.1.running_mean", "0.1.running_var"])
        assert [rank["written"]["held"] for rank in ranks] == [[7, held]] * 2
        assert [rank["written"]["trainable"] for rank in ranks] == [2, 2]

    def test_nothing_half_written(self, ranks: Any):
        first, second = (rank["written"] for rank in ranks)
        assert "is there already" in first["there"]
        assert first["one fails"].startswith("NothingSelected")
        assert second["one fails"].startswith("CheckpointError: process 0 failed")
        for case in (first, second):
            assert case["statistics"].startswith("RanksDiffer: 1 tensors")
            assert "0.1.running_mean" in case["statistics"]
            assert "(process 0) cannot be written" in case["unwritable"]
            assert case["left"] == []


def test_the_doctor(ranks: Any):
    for case in (rank["doctor"] for rank in ranks):
        assert case["sound"] == []
        assert "D805" in case["lost_flags"]
        assert "D806" in case["early_optimizer"]
