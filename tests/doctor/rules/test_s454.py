"""S454: a checkpoint's optimizer has another number of parameter groups."""

import contextlib

import pytest
import torch
from planted_loops import marked_line, s454

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/s454.py"


def text(line: int) -> str:
    return f"""\
S454 error: the checkpoint's optimizer has 2 parameter groups, optimizer has 1: its state was not loaded
  seen: in the checkpoint: 2 groups of 2, 4 parameters
        in optimizer: 1 group of 2 parameters; made at {FILE}:{line - 1}  optimizer = \
torch.optim.Adam(model.head.parameters(), lr=0.01)
        ValueError: loaded state dict has a different number of parameter groups
  at:   {FILE}:{line}  optimizer.load_state_dict(checkpoint["optimizer"])  # <- S454
  fix:  add the groups of the saved run to optimizer in the same order, then load"""


def test_it_is_found_with_its_line():
    found = examine(s454.failing())
    assert [f.code for f in found] == ["S454"]
    assert str(found[0]) == text(marked_line(s454.failing, "S454"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ())


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(s454.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "1 optimizer state had the groups of the optimizer" in found.sound


def test_one_that_is_caught_and_passed_over():
    torch.manual_seed(0)
    state = torch.load(s454.first_run())["optimizer"]
    with fl.watch() as seen:
        model = s454.Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with contextlib.suppress(ValueError):
            optimizer.load_state_dict(state)
        s454.train(model, optimizer, 2)
    found = examine(seen)
    assert [f.code for f in found] == ["S454"]
    assert "in optimizer: 1 group of 6 parameters" in found[0].evidence


def test_groups_of_other_sizes():
    torch.manual_seed(0)
    state = torch.load(s454.first_run())["optimizer"]
    watcher = fl.watch()
    with pytest.raises(ValueError, match="size"), watcher:
        model = s454.Net()
        groups = [{"params": model.trunk.parameters()}, {"params": model.head.parameters()}]
        torch.optim.Adam(groups).load_state_dict(state)
    found = examine(watcher.seen)
    assert [f.code for f in found] == ["S454"]
    assert "have other numbers of parameters" in found[0].message
    assert "in the checkpoint: 2 groups of 2, 4 parameters" in found[0].evidence
