"""O407: gradients are cleared before the step that should use them."""

import torch
from planted_loops import marked_line, o407
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o407.py"


def text(line: int) -> str:
    return f"""\
O407 error: gradients are cleared between backward() and optimizer.step(): 4 of 4 steps had none
  seen: cleared after the backward pass, at {FILE}:{line}  optimizer.zero_grad()  # <- O407
        4 gradients of optimizer, all None, at {FILE}:{line + 1}  optimizer.step()
  at:   {FILE}:{line}  optimizer.zero_grad()  # <- O407
  fix:  move this line before the backward pass, or behind the step"""


def test_it_is_found_with_its_line():
    found = examine(o407.failing())
    assert [f.code for f in found] == ["O407"]
    assert str(found[0]) == text(marked_line(o407.failing, "O407"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ("0.weight", "0.bias", "2.weight", "2.bias"))


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o407.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "all 4 steps had gradients that were not cleared before" in found.sound


def test_gradients_of_zero_are_no_better_than_none():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            nn.functional.cross_entropy(model(x), y).backward()
            model.zero_grad(set_to_none=False)
            optimizer.step()
    found = examine(seen)
    assert [f.code for f in found] == ["O407"]
    assert "2 gradients of optimizer, all zero" in found[0].evidence


def test_clearing_at_every_micro_batch():
    found = examine(o407.per_micro_batch())
    assert [f.code for f in found] == ["O407"]
    assert found[0].line == marked_line(o407.per_micro_batch, "O407 per micro-batch")
    assert found[0].message == (
        "gradients are cleared at every micro-batch: of 4 backward passes for a step only the last one counts"
    )
