"""D803: passes that go past the wrapper."""

import torch
from planted_loops import d803, marked_line
from planted_loops.single_process import process_group
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
D803 error: 3 training passes of model went past its wrapper: gradients were not averaged
  seen: passes with gradients: 3 past the wrapper, 0 through it
        wrapped at benchmarks/planted_loops/d803.py:{at_minus_10}  ddp = \
DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        the wrapper averages gradients only of passes that went through its own forward
  at:   benchmarks/planted_loops/d803.py:{line}  loss = nn.functional.cross_entropy(ddp.module(x), y)  # <- D803
  fix:  call the wrapper itself: ddp(x), not ddp.module(x)"""


def test_it_is_found_with_its_line():
    found = examine(d803.failing())
    assert found[0].code == "D803"
    assert [f.code for f in found].count("D803") == 1
    line = marked_line(d803.failing, "D803")
    assert str(found[0]) == TEXT.format(line=line, at_minus_10=line - 10)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(d803.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "3 training passes went through DistributedDataParallel" in found.sound


def test_a_pass_beside_one_through_the_wrapper_is_silent():
    with process_group(), fl.watch() as seen:
        ddp, optimizer = d803.make()
        for _ in range(2):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(ddp(x), y) + ddp.module(x).square().mean()
            loss.backward()
            optimizer.step()
    assert "D803" not in [f.code for f in examine(seen)]
