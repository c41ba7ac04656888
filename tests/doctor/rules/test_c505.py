"""C505: hyperparameters that a load overwrote."""

import torch
from planted_loops import c505, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
C505 warning: loading optimizer replaced lr, weight_decay of 1 group by the stored values
  seen: group 0: lr was 0.0001 before the load, 0.01 after it
        group 0: weight_decay was 0.1 before the load, 0.01 after it
        an optimizer's state holds its hyperparameters too, and they replace those of the constructor
  at:   benchmarks/planted_loops/c505.py:{line}  optimizer.load_state_dict(state)  # <- C505
  fix:  optimizer.param_groups[0]["lr"] = 0.0001; optimizer.param_groups[0]["weight_decay"] = 0.1, after \
optimizer.load_state_dict"""


def test_it_is_found_with_its_line():
    found = examine(c505.failing())
    assert found[0].code == "C505"
    assert [f.code for f in found].count("C505") == 1
    line = marked_line(c505.failing, "C505")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c505.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 optimizer kept the hyperparameters that were meant after loading a state" in found.sound


def test_a_scheduler_that_is_resumed_has_the_rate_in_its_hands():
    model = c505.make()
    first = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    decay = torch.optim.lr_scheduler.StepLR(first, 1)
    c505.train(model, first, 1)
    decay.step()
    optimizer_state, scheduler_state = first.state_dict(), decay.state_dict()
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        optimizer.load_state_dict(optimizer_state)
        scheduler.load_state_dict(scheduler_state)
        c505.train(model, optimizer, 1)
        scheduler.step()
    assert "C505" not in [f.code for f in examine(seen)]


def test_a_rate_that_the_script_sets_itself_is_information_only():
    model = c505.make()
    first = torch.optim.SGD(model.parameters(), lr=0.01)
    c505.train(model, first, 1)
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.load_state_dict(first.state_dict())
        for epoch in range(4, 6):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * 0.1 ** (epoch // 4)
            c505.train(model, optimizer, 1)
    told = [f for f in examine(seen) if f.code == "C505"]
    assert [f.severity for f in told] == [Severity.INFO]


def test_the_same_hyperparameters_are_silent():
    model = c505.make()
    first = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=False)
    c505.train(model, first, 1)
    with fl.watch(model) as seen:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, foreach=True)
        optimizer.load_state_dict(first.state_dict())
        c505.train(model, optimizer, 1)
    assert "C505" not in [f.code for f in examine(seen)]
