"""D801: requires_grad that changes after wrapping."""

import contextlib

import torch
from planted_loops import d801, marked_line
from planted_loops.single_process import process_group
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
D801 error: 2 parameters became trainable after DistributedDataParallel was made: their gradients are not averaged
  seen: wrapped at benchmarks/planted_loops/d801.py:{at_minus_3}, when 2 parameters required gradients
        requires_grad=True later, at benchmarks/planted_loops/d801.py:{line}: 0.0.weight, 0.0.bias
        a wrapper averages the parameters that required gradients when it was made, and no others
  at:   benchmarks/planted_loops/d801.py:{line}  net[0].requires_grad_(True)  # <- D801
  fix:  net.requires_grad_(...) first, then DistributedDataParallel(net); wrap anew when that changes"""


def test_it_is_found_with_its_line():
    found = examine(d801.failing())
    assert found[0].code == "D801"
    assert [f.code for f in found].count("D801") == 1
    line = marked_line(d801.failing, "D801")
    assert str(found[0]) == TEXT.format(line=line, at_minus_3=line - 3)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(d801.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "2 parameters kept requires_grad since the model was wrapped" in found.sound


def test_a_part_that_is_switched_off_and_on_again_is_silent():
    with process_group(), fl.watch() as seen:
        net = d801.make()
        model = DistributedDataParallel(net, find_unused_parameters=True)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            net[0].requires_grad_(False)
            net[0].requires_grad_(True)
            d801.train(model, optimizer, 1)
    assert "D801" not in [f.code for f in examine(seen)]


def frozen_later(**options: bool):
    watcher = fl.watch()
    with process_group(), contextlib.suppress(RuntimeError), watcher:
        net = d801.make()
        model = DistributedDataParallel(net, **options)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        d801.train(model, optimizer, 1)
        net[0].requires_grad_(False)
        d801.train(model, optimizer, 2)
    return [f for f in examine(watcher.seen) if f.code == "D801"]


def test_freezing_after_wrapping_is_told_with_the_error_that_comes_of_it():
    (told,) = frozen_later()
    assert told.severity is Severity.ERROR
    assert "2 parameters became frozen after DistributedDataParallel was made" in told.message
    assert "Expected to have finished reduction" in told.evidence


def test_freezing_is_silent_where_the_wrapper_looks_for_unused_parameters():
    assert frozen_later(find_unused_parameters=True) == []
