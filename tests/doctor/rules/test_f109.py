"""F109: frozen between backward and step."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f109, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F109 error: 4 parameters were frozen between backward() and step(), and moved again
  seen: trunk: frozen after a backward pass, before the step that uses it (benchmarks/planted_loops/f109.py:{line})
        trunk.2.weight: moved by 0.00366 in the step after that
        an optimizer looks at .grad, not at requires_grad
  at:   benchmarks/planted_loops/f109.py:{line}  model.trunk.requires_grad_(False)  # <- F109
  fix:  freeze before backward() or after step(), or set p.grad = None with it:
        frostline.freeze(model, "trunk", optimizer=optimizer)"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f109.failing())
    assert [f.code for f in found] == ["F109"]
    line = marked_line(f109.failing, "F109")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {f"trunk.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f109.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 parameters frozen while training stayed from then on" in found.sound


def loop(*, freeze_at, to_none=True, clear=False):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f109.Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for i in range(5):
            if i == 2 and freeze_at == "start":
                model.trunk.requires_grad_(False)
            optimizer.zero_grad(set_to_none=to_none)
            nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            if i == 2 and freeze_at == "backward":
                model.trunk.requires_grad_(False)
                for p in model.trunk.parameters() if clear else ():
                    p.grad = None
            optimizer.step()
            if i == 2 and freeze_at == "end":
                model.trunk.requires_grad_(False)
    return [f.code for f in examine(seen) if f.severity is not Severity.INFO]


@pytest.mark.parametrize("freeze_at", ["start", "end"])
@pytest.mark.parametrize("to_none", [True, False])
def test_before_backward_and_after_the_step_it_is_right(freeze_at, to_none):
    assert loop(freeze_at=freeze_at, to_none=to_none) == []


def test_with_the_gradient_dropped_it_is_right():
    assert loop(freeze_at="backward") == ["F109"]
    assert loop(freeze_at="backward", clear=True) == []


def test_what_follows_from_it_is_not_said_twice():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f109.Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for i in range(5):
            optimizer.zero_grad(set_to_none=False)
            nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            if i == 2:
                model.trunk.requires_grad_(False)
            optimizer.step()
    assert [f.code for f in examine(seen) if f.severity is not Severity.INFO] == ["F109"]


def test_a_gradient_that_was_cleared_before_freezing_is_no_gradient_from_before():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f109.Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for i in range(4):
            if i == 2:
                model.trunk.requires_grad_(False)
            nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert [f.code for f in examine(seen) if f.severity is not Severity.INFO] == ["F110"]


def test_a_gradient_of_a_pass_before_freezing_is_one_where_it_is_cleared_at_the_end():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f109.Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for i in range(4):
            nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            if i == 2:
                model.trunk.requires_grad_(False)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert [f.code for f in examine(seen) if f.severity is not Severity.INFO] == ["F109"]
