"""D807: parameters that differ between processes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from planted_loops import d807, marked_line

from frostline.audit.events import Wrapped
from frostline.audit.seen import ModelSeen, RankDigest, Seen, TensorSeen
from frostline.doctor import examine
from frostline.doctor.rules.d807 import look
from frostline.findings import Safety, Severity

TEXT = """\
D807 warning: 4 parameters of net differ between 2 processes
  seen: 0.weight, digests: rank 0 ........, rank 1 ........
        in all: {{0,2}}.weight (x2), {{0,2}}.bias (x2)
        the model is not wrapped: nothing made the processes begin with the same values, or kept them equal
  at:   benchmarks/planted_loops/d807.py:{line}  nn.functional.cross_entropy(net(x), y).backward()  # <- D807
  fix:  DistributedDataParallel(net), made after everything is loaded, replaced and frozen, and called in every \
training pass"""


def test_it_is_found_with_its_line():
    found = examine(d807.failing())
    assert found[0].code == "D807"
    assert [f.code for f in found].count("D807") == 1
    line = marked_line(d807.failing, "D807")
    assert re.sub(r"(rank \d) [0-9a-f]{8}", r"\1 ........", str(found[0])) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(d807.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 parameters are equal in 2 processes" in found.sound


def seen_by_two(other: str, wrapper: str = "", *, trained: bool = True) -> Seen:
    weight = TensorSeen("weight", "parameter", "weight", "", "Linear", (2,), gradients=3 if trained else 0)
    model = ModelSeen("net", "Linear", {"weight": weight}, {})
    ranks = [
        RankDigest(0, {"net": {"weight": "a" * 8}}, {"net": ("weight",)}, 3),
        RankDigest(1, {"net": {"weight": other}}, {"net": ()}, 4),
    ]
    events = [Wrapped(at=0, step=0, model="net", wrapper=wrapper, trainable=("weight",))] if wrapper else []
    return Seen(models=[model], ranks=ranks, events=events)


def test_the_rule_on_digests():
    (found,) = look(seen_by_two("b" * 8))
    assert (found.severity, found.paths) == (Severity.WARNING, ("weight",))
    assert "optimizer steps: rank 0 3, rank 1 4" in found.evidence
    assert "the processes do not have the same parameters frozen" in found.evidence
    (found,) = look(seen_by_two("b" * 8, "DistributedDataParallel"))
    assert found.severity is Severity.ERROR
    assert list(look(seen_by_two("b" * 8, "fully_shard"))) == []
    assert list(look(seen_by_two("b" * 8, trained=False))) == []
    assert list(look(seen_by_two("a" * 8))) == []


SCRIPT = """
import json, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import frostline as fl
from frostline.doctor import examine

rank, folder = int(sys.argv[1]), sys.argv[2]
for wrapped in (False, True):
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store{wrapped}", 2), rank=rank, world_size=2)
    torch.manual_seed(rank)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    with fl.watch() as seen:
        model = DistributedDataParallel(net) if wrapped else net
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            if not wrapped:
                for p in net.parameters():
                    dist.all_reduce(p.grad)
                    p.grad /= 2
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
    assert told == [[[["D807"], 2, []], [[], 2, []]]] * 2
