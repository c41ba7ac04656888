"""O405: an optimizer was given an iterator that was used up."""

import pytest
import torch
from planted_loops import marked_line, o405
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o405.py"


def text(line: int) -> str:
    return f"""\
O405 error: the iterator params was used up before the optimizer was made: nothing was left of it for the \
optimizer
  seen: made at {FILE}:{line - 1}  params = filter(lambda p: p.requires_grad, model.parameters())
        used up at {FILE}:{line}  count = sum(p.numel() for p in params)  # <- O405
        ValueError: optimizer got an empty parameter list, raised at {FILE}:{line + 1}  optimizer = \
torch.optim.SGD(params, lr=0.1)
  at:   {FILE}:{line}  count = sum(p.numel() for p in params)  # <- O405
  fix:  params = list(filter(lambda p: p.requires_grad, model.parameters()))"""


def test_it_is_found_with_its_line():
    found = examine(o405.failing())
    assert [f.code for f in found] == ["O405"]
    assert str(found[0]) == text(marked_line(o405.failing, "O405"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ())


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o405.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "1 parameter group came with parameters when the optimizers were made" in found.sound


def test_an_empty_group_of_which_torch_says_nothing():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        slow = model[0].parameters()
        names = [tuple(p.shape) for p in slow]
        optimizer = torch.optim.SGD([{"params": slow, "lr": 0.01}, {"params": model[2].parameters()}], lr=0.1)
        o405.train(model, optimizer, 3)
    found = examine(seen)
    assert [f.code for f in found] == ["O405"]
    assert found[0].source == "names = [tuple(p.shape) for p in slow]"
    assert "group 0 of optimizer has no parameter" in found[0].message
    assert len(names) == 2


def test_an_empty_list_because_everything_is_frozen_is_something_else():
    watcher = fl.watch()
    with pytest.raises(ValueError, match="empty parameter list"), watcher:
        model = nn.Linear(4, 3).requires_grad_(False)
        params = filter(lambda p: p.requires_grad, model.parameters())
        torch.optim.SGD(params, lr=0.1)
    assert "O405" not in [f.code for f in examine(watcher.seen)]
