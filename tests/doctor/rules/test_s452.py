"""S452: the scheduler steps before the optimizer."""

import warnings

import torch
from planted_loops import marked_line, s452
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/s452.py"


def text(line: int) -> str:
    return f"""\
S452 warning: StepLR steps before optimizer: the first rate of the schedule is left out, and all later ones \
come one step too early
  seen: StepLR stepped before the first backward pass; at its first step optimizer had not stepped at all
        the first rate, 0.1, was used for no step: the first step was done with 0.05
  at:   {FILE}:{line}  scheduler.step()  # <- S452
  fix:  call it after optimizer.step(), at the end of the step or epoch"""


def test_it_is_found_with_its_line():
    found = examine(s452.failing())
    assert [f.code for f in found] == ["S452"]
    assert str(found[0]) == text(marked_line(s452.failing, "S452"))
    assert (found[0].severity, found[0].paths) == (Severity.WARNING, ())


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(s452.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "1 scheduler stepped after the optimizer" in found.sound


def test_between_the_backward_pass_and_the_step():
    torch.manual_seed(0)
    with warnings.catch_warnings(), fl.watch() as seen:
        warnings.simplefilter("ignore")
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for _ in range(3):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            scheduler.step()
            optimizer.step()
    found = examine(seen)
    assert [f.code for f in found] == ["S452"]
    assert "stepped between the backward pass and the optimizer's step" in found[0].evidence


def test_a_watch_that_begins_at_the_end_of_an_epoch():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def step():
        x, y = torch.randn(16, 4), torch.randint(3, (16,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    step()
    with fl.watch(model, optimizer) as seen:
        scheduler.step()
        step()
    assert list(examine(seen)) == []
