"""O408: gradient accumulation steps at the wrong micro-batch."""

import torch
from planted_loops import marked_line, o408
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o408.py"


def text(line: int) -> str:
    return f"""\
O408 error: accumulation steps after 1 micro-batch, then after every 4: the first step comes too early, and 1 \
is left over at the end
  seen: backward passes for each step: 1, 4, 4; 1 left over
        the step stands under: if i % accumulation_steps == 0
        the first step had the gradient of 1 of 4 micro-batches
  at:   {FILE}:{line}  optimizer.step()  # <- O408
  fix:  if (i + 1) % accumulation_steps == 0 or i + 1 == len(loader):"""


def test_it_is_found_with_its_line():
    found = examine(o408.failing())
    assert [f.code for f in found] == ["O408"]
    assert str(found[0]) == text(marked_line(o408.failing, "O408"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ())


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o408.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "gradient accumulation steps after every 4 backward passes, in 3 steps" in found.sound


def test_what_is_left_of_an_epoch_is_cleared():
    found = examine(o408.dropped())
    assert [(f.code, f.severity) for f in found] == [("O408", Severity.WARNING)]
    assert found[0].line == marked_line(o408.dropped, "O408 dropped")
    assert found[0].message.startswith("accumulation throws away 2 micro-batches")


def test_an_optimizer_that_was_made_before_the_watch_is_told_by_the_condition():
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watch(model, optimizer) as seen:
        for i in range(10):
            x, y = torch.randn(8, 4), torch.randint(3, (8,))
            nn.functional.cross_entropy(model(x), y).backward()
            if i > -1 and i % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
    found = examine(seen)
    assert [f.code for f in found] == ["O408"]
    assert "the step stands under: if i > -1 and i % 4 == 0" in found[0].evidence


def test_a_leftover_that_goes_into_the_next_epoch_is_in_the_count():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            for i in range(10):
                x, y = torch.randn(8, 4), torch.randint(3, (8,))
                nn.functional.cross_entropy(model(x), y).backward()
                if i % 4 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
    found = examine(seen)
    assert [f.code for f in found] == ["O408"]
    assert "backward passes for each step: 1, 4, 4, 2, 4, 4; 1 left over" in found[0].evidence
