"""F119: frozen values written by hand."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f119, marked_line

import frostline as fl
from frostline.audit import Contract
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F119 error: 4 parameters of trunk are held, and were written by hand
  seen: trunk.0.weight: moved by up to 0.328 in 4 steps
        written by aten.clamp_ through .data at benchmarks/planted_loops/f119.py:{line}  p.data.clamp_(-0.3 + 0.05 \
* i, 0.3 - 0.05 * i)  # <- F119
        requires_grad=False stops gradients, not writes; no optimizer step changed them
  at:   benchmarks/planted_loops/f119.py:{line}  p.data.clamp_(-0.3 + 0.05 * i, 0.3 - 0.05 * i)  # <- F119
  fix:  leave them out of that line: write only to parameters with p.requires_grad"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f119.failing())
    assert [f.code for f in found] == ["F119"]
    line = marked_line(f119.failing, "F119")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.MANUAL)
    assert set(found[0].paths) == {f"trunk.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f119.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 frozen parameters kept their bytes" in found.sound


def test_what_was_only_inferred_is_a_warning():
    found = [f for f in examine(f119.inferred()) if f.severity is not Severity.INFO]
    assert [(f.code, f.severity, f.inferred) for f in found] == [("F119", Severity.WARNING, True)]
    assert found[0].source == "p.mul_(0.99)"
    assert "written by aten.mul_ at" in found[0].evidence


@pytest.mark.parametrize("steps", [4, 14])
def test_a_write_past_the_dispatcher_is_said_to_be_so(steps):
    (found,) = (f for f in examine(f119.by_numpy(steps)) if f.severity is not Severity.INFO)
    assert found.message == "trunk.0.weight is held, and was written by hand"
    assert found.source == "weight = model.trunk[0].weight.detach().numpy()"
    assert ("past torch's dispatcher" if steps > 10 else "no operator was seen to write it") in found.evidence


def test_a_teacher_that_follows_its_student_is_silent():
    assert [f for f in examine(f119.average()) if f.code == "F119"] == []


def test_values_that_are_loaded_are_what_must_stay_from_then_on():
    torch.manual_seed(0)
    model = f119.Net()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    model.trunk.requires_grad_(False)
    state = {k: v + 1 for k, v in model.state_dict().items()}
    with fl.watch(model, optimizer, contract=Contract(frozen=("trunk",))) as seen:
        for i in range(3):
            optimizer.zero_grad()
            f119.loss_of(model).backward()
            optimizer.step()
            if i == 1:
                model.load_state_dict(state)
    assert [f for f in examine(seen) if f.code == "F119"] == []


def test_what_may_move_is_silent():
    torch.manual_seed(0)
    model = f119.Net()
    model.trunk.requires_grad_(False)
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with fl.watch(model, optimizer, contract=Contract(moving=("trunk.*",))) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            f119.loss_of(model).backward()
            optimizer.step()
            for p in model.parameters():
                p.data.mul_(0.9)
    assert [f for f in examine(seen) if f.code == "F119"] == []
