"""F103: the method was overwritten, or the flag compared."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f103, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F103 error: the method requires_grad_ was overwritten on 4 parameters, not called: 4 parameters are still trainable
  seen: requires_grad_ = False was set on 4 parameters; it replaces the method and sets no flag
        requires_grad is still True in 4 parameters; all of them changed in 4 steps
  at:   benchmarks/planted_loops/f103.py:{line}  p.requires_grad_ = False  # <- F103
  fix:  p.requires_grad = False
        or, so that statistics stay too: frostline.freeze(model, "backbone")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f103.failing())
    assert [f.code for f in found] == ["F103"]
    line = marked_line(f103.failing, "F103")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.SAFE)
    assert set(found[0].paths) == {f"backbone.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f103.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 frozen parameters kept their bytes" in found.sound


COMPARED = """\
F103 error: requires_grad was compared, not set: 4 parameters of backbone are still trainable
  seen: p.requires_grad == False is a comparison whose result is thrown away
        requires_grad is still True in 4 parameters; all of them changed in 4 steps
  at:   benchmarks/planted_loops/f103.py:{line}  p.requires_grad == False  # noqa: B015, E712 # <- F103
  fix:  p.requires_grad = False
        or, so that statistics stay too: frostline.freeze(model, "backbone")"""


def test_a_comparison_is_found_too():
    found = examine(f103.comparing())
    assert [str(f) for f in found] == [COMPARED.format(line=marked_line(f103.comparing, "F103"))]


@pytest.mark.parametrize("loop", [f103.failing, f103.comparing])
def test_the_remedy_in_memory_holds(loop):
    seen = loop()
    assert examine(seen).apply() == ["F103: a hold on backbone"]
    model, optimizer = seen.models[0].live, seen.optimizers[0].live
    with fl.watch(model, optimizer) as again:
        f103.train(model, optimizer, 3)
    assert [f for f in examine(again) if f.severity is not Severity.INFO] == []


def compare_if(wanted):
    with fl.watch() as seen:
        model = f103.Net()
        if wanted:
            for p in model.backbone.parameters():
                p.requires_grad == False  # noqa: B015, E712
        f103.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    return examine(seen)


def test_a_line_that_did_not_run_is_not_reported():
    assert [f.code for f in compare_if(True)] == ["F103"]
    assert compare_if(False) == []


def test_a_comparison_that_is_used_is_silent():
    with fl.watch() as seen:
        model = f103.Net()
        frozen = [p for p in model.parameters() if p.requires_grad == False]  # noqa: E712
        for p in model.parameters():
            assert p.requires_grad is not False
        f103.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    assert frozen == []
    assert examine(seen) == []
