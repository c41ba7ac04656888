"""O413: the optimizer holds frozen parameters only."""

import torch
from planted_loops import marked_line, o413
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o413.py"


def text(line: int) -> str:
    return f"""\
O413 error: all 4 parameters of optimizer are frozen: its steps do nothing
  seen: requires_grad=False in all of trunk
        no gradient at any of 4 steps, and torch does not warn
        trainable, with gradients, and in no optimizer: head
  at:   {FILE}:{line}  optimizer = torch.optim.Adam(model.trunk.parameters(), lr=0.01)  # <- O413
  fix:  give it what is to be trained: torch.optim.Adam((p for p in model.parameters() if p.requires_grad), ...)"""


def test_it_is_found_with_its_line():
    found = examine(o413.failing())
    assert [f.code for f in found] == ["O413"]
    assert str(found[0]) == text(marked_line(o413.failing, "O413"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ("trunk", "head"))


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o413.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "optimizer had gradients to step on" in found.sound


def test_beside_an_optimizer_that_trains_it_is_for_information():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = o413.Net()
        model.trunk.requires_grad_(False)
        idle = torch.optim.SGD(model.trunk.parameters(), lr=0.1)
        busy = torch.optim.SGD(model.head.parameters(), lr=0.1)
        for _ in range(3):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            busy.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            idle.step()
            busy.step()
    assert [(f.code, f.severity) for f in examine(seen)] == [("O413", Severity.INFO)]
