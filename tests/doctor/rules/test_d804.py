"""D804: statistics that differ between processes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from planted_loops import d804, marked_line

from frostline.audit.events import Wrapped
from frostline.audit.seen import ModelSeen, RankDigest, Seen, TensorSeen
from frostline.doctor import examine
from frostline.doctor.rules.d804 import look
from frostline.findings import Safety, Severity

TEXT = """\
D804 warning: the statistics of 1 normalization layer of net differ between 2 processes
  seen: 1.running_mean, digests: rank 0 ........, rank 1 ........
        layers: 1
        broadcast_buffers=False at benchmarks/planted_loops/d804.py:{line}: each process keeps the statistics of \
its own data
  at:   benchmarks/planted_loops/d804.py:{line}  model = DistributedDataParallel(net, broadcast_buffers=False)  # \
<- D804
  fix:  nn.SyncBatchNorm.convert_sync_batchnorm(net) before wrapping, or average the buffers before evaluating and \
saving"""


def test_it_is_found_with_its_line():
    found = examine(d804.failing())
    assert found[0].code == "D804"
    assert [f.code for f in found].count("D804") == 1
    line = marked_line(d804.failing, "D804")
    assert re.sub(r"(rank \d) [0-9a-f]{8}", r"\1 ........", str(found[0])) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(d804.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "3 statistics of 2 processes agree, or are broadcast in each pass" in found.sound


def seen_by_two(other: str, wrapped: Wrapped | None) -> Seen:
    mean = TensorSeen("bn.running_mean", "buffer", "norm.mean", "bn", "BatchNorm1d", (2,))
    queue = TensorSeen("queue", "buffer", "state", "", "MoCo", (2,))
    model = ModelSeen("net", "Net", {"bn.running_mean": mean, "queue": queue}, {})
    ranks = [RankDigest(0, {"net": {"bn.running_mean": "a" * 8, "queue": "q"}}, {}, 3)]
    ranks.append(RankDigest(1, {"net": {"bn.running_mean": other, "queue": "r"}}, {}, 3))
    return Seen(models=[model], ranks=ranks, events=[wrapped] if wrapped else [])


def wrap(wrapper: str = "DistributedDataParallel", **settings: bool) -> Wrapped:
    return Wrapped(at=0, step=0, model="net", wrapper=wrapper, trainable=(), settings=settings)


def test_the_rule_on_digests():
    assert [found.paths for found in look(seen_by_two("b" * 8, None))] == [("bn.running_mean",)]
    assert [found.paths for found in look(seen_by_two("b" * 8, wrap(broadcast_buffers=False)))] == [
        ("bn.running_mean",)
    ]
    assert list(look(seen_by_two("b" * 8, wrap(broadcast_buffers=True)))) == []
    assert list(look(seen_by_two("b" * 8, wrap("fully_shard")))) == []
    assert list(look(seen_by_two("a" * 8, None))) == []


SCRIPT = """
import json, sys, warnings
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import frostline as fl
from frostline.doctor import examine

warnings.simplefilter("ignore", FutureWarning)
rank, folder = int(sys.argv[1]), sys.argv[2]
for broadcast in (False, True):
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store{broadcast}", 2), rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    torch.manual_seed(rank)
    with fl.watch() as seen:
        model = DistributedDataParallel(net, broadcast_buffers=broadcast)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            optimizer.step()
    print(json.dumps([[f.code for f in examine(seen) if f.severity.value != "info"], len(seen.ranks), seen.missed]))
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path):
    """Both ways in one pair of processes, which take longer to start than to train."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    runs = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [list(map(json.loads, run.communicate(timeout=120)[0].splitlines()[-2:])) for run in runs]
    assert told == [[[["D804"], 2, []], [[], 2, []]]] * 2
