"""S453: the learning rate jumps on resuming: the scheduler's state was not loaded."""

import copy

import torch
from planted_loops import marked_line, s453
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/s453.py"


def text(line: int) -> str:
    return f"""\
S453 error: resumed without the state of LambdaLR: the rate jumps from 0.0027 to 0.03
  seen: rate 0.0027, of a schedule that began at 0.1, came at {FILE}:{line}  \
optimizer.load_state_dict(checkpoint["optimizer"])  # <- S453
        no state was loaded into LambdaLR, which begins anew
        rate of step 2 after loading: 0.03, 11.1 times the one loaded
  at:   {FILE}:{line}  optimizer.load_state_dict(checkpoint["optimizer"])  # <- S453
  fix:  scheduler.load_state_dict(checkpoint["scheduler"]) here, and its state_dict() into the checkpoint"""


def test_it_is_found_with_its_line():
    found = examine(s453.failing())
    assert [f.code for f in found] == ["S453"]
    assert str(found[0]) == text(marked_line(s453.failing, "S453"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ())


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(s453.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "1 optimizer state in mid-schedule came with the state of the scheduler" in found.sound


def test_a_schedule_that_starts_anew_without_a_jump():
    def make():
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.1)

    model, optimizer, scheduler = make()
    s453.train(model, optimizer, scheduler, 4)
    state = copy.deepcopy(optimizer.state_dict())
    with fl.watch() as seen:
        model, optimizer, scheduler = make()
        optimizer.load_state_dict(state)
        s453.train(model, optimizer, scheduler, 3)
    found = examine(seen)
    assert [(f.code, f.severity) for f in found] == [("S453", Severity.WARNING)]
    assert "starts from its beginning, in the middle of the run" in found[0].message


def test_going_back_to_an_earlier_state_in_the_same_run_is_no_resuming():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model, optimizer, scheduler = s453.make()
        s453.train(model, optimizer, scheduler, 2)
        best = copy.deepcopy(optimizer.state_dict())
        s453.train(model, optimizer, scheduler, 2)
        optimizer.load_state_dict(best)
        s453.train(model, optimizer, scheduler, 2)
    assert "S453" not in [f.code for f in examine(seen)]
