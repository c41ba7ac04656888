"""O411: clipping counts gradients that no optimizer uses."""

import torch
from planted_loops import marked_line, o411
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o411.py"


def text(line: int) -> str:
    return f"""\
O411 warning: clipping counts the gradients of 4 parameters (trunk) that no optimizer has
  seen: 6 tensors with gradients were clipped together in 4 calls, 4 of them are in no optimizer
        optimizer.zero_grad() does not clear them: they pile up, and clipping gets harder from step to step
  at:   {FILE}:{line}  torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # <- O411
  fix:  clip what optimizer has: torch.nn.utils.clip_grad_norm_(model.head.parameters(), ...)"""


def test_it_is_found_with_its_line():
    found = examine(o411.failing())
    assert [f.code for f in found] == ["O411"]
    assert str(found[0]) == text(marked_line(o411.failing, "O411"))
    assert (found[0].severity, found[0].paths) == (
        Severity.WARNING,
        ("trunk.0.weight", "trunk.0.bias", "trunk.2.weight", "trunk.2.bias"),
    )


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o411.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "4 calls of clipping counted only what an optimizer has" in found.sound


def test_where_the_optimizer_forgot_a_part_that_is_the_mistake_and_not_the_clip():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = o411.Net()
        optimizer = torch.optim.SGD(model.trunk.parameters(), lr=0.1)
        for _ in range(3):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    found = examine(seen)
    assert [(f.code, f.paths) for f in found] == [("O412", ("head",))]


def test_gradients_that_are_cleared_by_the_model_do_not_pile_up_but_count():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = o411.Net()
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        for _ in range(3):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    found = examine(seen)
    assert [f.code for f in found] == ["O411"]
    assert "what is trained is scaled down for their sake" in found[0].evidence
