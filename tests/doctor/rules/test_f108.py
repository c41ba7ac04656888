"""F108: what was frozen is thawed by a later line."""

from __future__ import annotations

import torch
from planted_loops import f108, marked_line

import frostline as fl
from frostline.audit import Contract
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F108 error: trunk was frozen and made trainable again: 4 parameters train
  seen: requires_grad=False at benchmarks/planted_loops/f108.py:{other}  p.requires_grad = False
        requires_grad=True at benchmarks/planted_loops/f108.py:{line}  p.requires_grad = True  # <- F108
        4 parameters changed in 4 steps
  at:   benchmarks/planted_loops/f108.py:{line}  p.requires_grad = True  # <- F108
  fix:  delete or narrow the later line (benchmarks/planted_loops/f108.py:{line}), or freeze so that it has no \
effect:
        frostline.freeze(model, "trunk", optimizer=optimizer)"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f108.failing())
    assert [f.code for f in found] == ["F108"]
    line = marked_line(f108.failing, "F108")
    assert str(found[0]) == TEXT.format(line=line, other=line - 2)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {f"trunk.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f108.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 parameters stayed frozen once a line had frozen them" in found.sound


def build():
    model = f108.Net()
    for p in model.trunk.parameters():
        p.requires_grad = False
    return model


class Frozen(f108.Net):
    def __init__(self):
        super().__init__()
        for p in self.trunk.parameters():
            p.requires_grad = False


def test_a_class_that_freezes_when_it_is_made_is_a_warning():
    with fl.watch() as seen:
        model = Frozen()
        model.requires_grad_(True)
        f108.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    assert [(f.code, f.severity) for f in examine(seen)] == [("F108", Severity.WARNING)]


def test_freezing_that_is_undone_only_in_part_is_meant():
    with fl.watch() as seen:
        model = build()
        for p in model.trunk[2].parameters():
            p.requires_grad = True
        f108.train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), 2)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []


def test_what_is_thawed_after_it_was_used_is_meant():
    with fl.watch() as seen:
        model = build()
        with torch.no_grad():
            model(torch.randn(4, 4))
        model.requires_grad_(True)
        f108.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []


def test_what_was_declared_and_is_thawed_while_training_is_an_error():
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with fl.watch(model, optimizer, contract=Contract(frozen=("trunk",))) as seen:
        f108.train(model, optimizer, 2)
        for p in model.trunk.parameters():
            p.requires_grad = False
        for p in model.trunk.parameters():
            p.requires_grad = True
        f108.train(model, optimizer, 2)
    found = [f for f in examine(seen) if f.severity is not Severity.INFO]
    assert [(f.code, f.severity, f.inferred) for f in found] == [("F108", Severity.ERROR, False)]
    assert found[0].source == "p.requires_grad = True"


def test_a_hold_that_knows_the_optimizer_withstands():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f108.Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        fl.freeze(model, "trunk", optimizer=optimizer)
        for p in model.parameters():
            p.requires_grad = True
        f108.train(model, optimizer, 3)
    assert [f.code for f in examine(seen) if f.code == "F108"] == []
