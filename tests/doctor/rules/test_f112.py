"""F112: a flag in a group that the optimizer ignores."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f112, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F112 error: SGD ignores freeze=True in group 0: 4 parameters train
  seen: group 0 of optimizer has freeze=True, a setting that SGD never reads
        trunk changed in 4 steps
  at:   benchmarks/planted_loops/f112.py:{line}  {{"params": model.trunk.parameters(), "freeze": True}},  # <- F112
  fix:  frostline.freeze(model, "trunk", optimizer=optimizer)"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f112.failing())
    assert [f.code for f in found] == ["F112"]
    line = marked_line(f112.failing, "F112")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.MANUAL)
    assert set(found[0].paths) == {f"trunk.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f112.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 parameter group with a flag for freezing kept its parameters" in found.sound


def with_setting(**settings):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f112.Net()
        groups = [{"params": model.trunk.parameters(), **settings}, {"params": model.head.parameters()}]
        f112.train(model, torch.optim.AdamW(groups, lr=0.1), 2)
    return [f.code for f in examine(seen) if f.severity is not Severity.INFO]


FREEZING = [{"frozen": True}, {"trainable": False}, {"requires_grad": False}, {"lr_mult": 0.0}]


@pytest.mark.parametrize("settings", FREEZING)
def test_other_flags(settings):
    assert with_setting(**settings) == ["F112"]


@pytest.mark.parametrize(
    "settings", [{"freeze": False}, {"trainable": True}, {"lr_mult": 0.1}, {"lr_scale": 1.0}, {"name": "trunk"}]
)
def test_flags_that_do_not_freeze_are_silent(settings):
    assert with_setting(**settings) == []
