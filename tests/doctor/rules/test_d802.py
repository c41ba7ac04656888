"""D802: parameters that are replaced after wrapping."""

import torch
from planted_loops import d802, marked_line
from planted_loops.single_process import process_group
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
D802 error: 2 parameters of net are not what DistributedDataParallel took in
  seen: wrapped at benchmarks/planted_loops/d802.py:{at_minus_1}  model = DistributedDataParallel(net, \
find_unused_parameters=True)
        replaced since: 2.weight, 2.bias
        the wrapper holds the old parameters; the new ones get gradients that nobody averages
  at:   benchmarks/planted_loops/d802.py:{line}  net[2] = nn.Linear(8, 3)  # <- D802
  fix:  replace and move first, then DistributedDataParallel(net), then the optimizer"""


def test_it_is_found_with_its_line():
    found = examine(d802.failing())
    assert found[0].code == "D802"
    assert [f.code for f in found].count("D802") == 1
    line = marked_line(d802.failing, "D802")
    assert str(found[0]) == TEXT.format(line=line, at_minus_1=line - 1)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(d802.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 parameters are those that DistributedDataParallel took in" in found.sound


def test_parameters_that_only_moved_to_other_memory_are_information():
    with process_group(), fl.watch() as seen:
        net = d802.make()
        model = DistributedDataParallel(net)
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(net.parameters()).detach(), net.parameters())
        d802.train(model, torch.optim.SGD(net.parameters(), lr=0.1), 2)
    told = [f for f in examine(seen) if f.code == "D802"]
    assert [f.severity for f in told] == [Severity.INFO]
    assert "in other memory than then" in told[0].evidence


def test_a_load_that_replaces_tensors_is_told_with_its_line():
    with process_group(), fl.watch() as seen:
        net = d802.make()
        model = DistributedDataParallel(net, find_unused_parameters=True)
        net.load_state_dict({k: v.clone() for k, v in net.state_dict().items()}, assign=True)
        d802.train(model, torch.optim.SGD(net.parameters(), lr=0.1), 2)
    (told,) = [f for f in examine(seen) if f.code == "D802"]
    assert told.severity is Severity.ERROR
    assert "assign=True" in told.source
