"""F104: flags in a generator that nobody consumes."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f104, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F104 error: a generator of requires_grad_ calls was never consumed: 4 parameters of backbone are still trainable
  seen: a generator does nothing until something walks over it
        requires_grad is still True in 4 parameters; all of them changed in 4 steps
  at:   benchmarks/planted_loops/f104.py:{line}  (p.requires_grad_(False) for p in model.backbone.parameters())  # \
<- F104
  fix:  for p in model.backbone.parameters():
            p.requires_grad_(False)
        or, so that statistics stay too: frostline.freeze(model, "backbone")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f104.failing())
    assert [f.code for f in found] == ["F104"]
    line = marked_line(f104.failing, "F104")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.SAFE)
    assert set(found[0].paths) == {f"backbone.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f104.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 frozen parameters kept their bytes" in found.sound


def test_a_map_in_a_function_is_found_too():
    (found,) = examine(f104.mapping())
    assert found.message.startswith("a map object of requires_grad_ calls was never consumed: 4 parameters of backbone")
    assert found.source.startswith("map(lambda p: p.requires_grad_(False), module.parameters())")


def test_the_remedy_in_memory_holds():
    seen = f104.failing()
    assert examine(seen).apply() == ["F104: a hold on backbone"]
    model, optimizer = seen.models[0].live, seen.optimizers[0].live
    with fl.watch(model, optimizer) as again:
        f104.train(model, optimizer, 3)
    assert [f for f in examine(again) if f.severity is not Severity.INFO] == []


def freeze_some(model, *, wanted, consume):
    if not wanted:
        return
    flags = (p.requires_grad_(False) for p in model.backbone.parameters() if p.ndim > 1)
    if consume:
        for _ in flags:
            pass


@pytest.mark.parametrize(("wanted", "consume"), [(False, False), (True, True)])
def test_what_was_not_run_or_was_consumed_is_silent(wanted, consume):
    with fl.watch() as seen:
        model = f104.Net()
        freeze_some(model, wanted=wanted, consume=consume)
        f104.train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), 2)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []


def test_where_only_some_were_meant_no_part_is_named_and_nothing_is_repaired():
    with fl.watch() as seen:
        model = f104.Net()
        (p.requires_grad_(False) for p in model.backbone.parameters() if p.ndim > 1)
        f104.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    found = examine(seen)
    assert [(f.code, f.safety, f.paths) for f in found] == [("F104", Safety.MANUAL, ())]
    assert found.repairable == []
