"""D806: an optimizer that was made before sharding."""

import torch
from planted_loops import d806, marked_line
from planted_loops.single_process import process_group
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
D806 error: optimizer was made before fully_shard: 4 parameters of it are no longer the model's
  seen: sharded at benchmarks/planted_loops/d806.py:{at_plus_1}, which put new parameters in the place of \
{{0,2}}.weight (x2), {{0,2}}.bias (x2)
        of 4 trainable parameters of model, optimizer has 0
        so its 3 steps moved nothing in it
  at:   benchmarks/planted_loops/d806.py:{line}  optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # <- D806
  fix:  make optimizer after fully_shard, from model.parameters()"""


def test_it_is_found_with_its_line():
    found = examine(d806.failing())
    assert found[0].code == "D806"
    assert [f.code for f in found].count("D806") == 1
    line = marked_line(d806.failing, "D806")
    assert str(found[0]) == TEXT.format(line=line, at_plus_1=line + 1)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(d806.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 optimizer made after sharding, with the sharded model's own parameters" in found.sound


def test_an_optimizer_that_was_made_before_a_wrapper_that_keeps_the_parameters_is_silent():
    with process_group(), fl.watch() as seen:
        net = d806.make()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        d806.train(DistributedDataParallel(net), optimizer, 2)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []
