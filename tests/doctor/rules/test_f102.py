"""F102: requires_grad on a module."""

from __future__ import annotations

import torch
from planted_loops import f102, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F102 error: requires_grad was set on 1 module, not on parameters: 4 parameters below are still trainable
  seen: requires_grad = False was set on 1 module; a module has no such flag
        requires_grad is still True in 4 parameters; all of them changed in 4 steps
  at:   benchmarks/planted_loops/f102.py:{line}  model.backbone.requires_grad = False  # <- F102
  fix:  model.backbone.requires_grad_(False)
        or, so that statistics stay too: frostline.freeze(model, "backbone")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f102.failing())
    assert [f.code for f in found] == ["F102"]
    line = marked_line(f102.failing, "F102")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.SAFE)
    assert set(found[0].paths) == {f"backbone.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f102.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "requires_grad was set on none of 7 modules" in found.sound


def test_the_remedy_in_memory_holds():
    seen = f102.failing()
    assert examine(seen).apply() == ["F102: a hold on backbone"]
    model, optimizer = seen.models[0].live, seen.optimizers[0].live
    kept = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    with fl.watch(model, optimizer) as again:
        f102.train(model, optimizer, 3)
    assert [f for f in examine(again) if f.severity is not Severity.INFO] == []
    assert all(v.equal(kept[k]) for k, v in model.backbone.state_dict().items())


def test_children_that_were_set_one_by_one_are_one_finding():
    with fl.watch() as seen:
        model = f102.Net()
        for child in model.backbone.children():
            child.requires_grad = False
        f102.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    (found,) = examine(seen)
    assert found.message.startswith("requires_grad was set on 4 modules, not on parameters: 4 parameters below are")
    assert found.source == "child.requires_grad = False"
    assert found.remedy.splitlines()[0] == "child.requires_grad_(False)"


def test_an_option_that_its_class_acts_on_is_silent():
    class Frozen(f102.Net):
        def __init__(self):
            super().__init__()
            self.requires_grad = False
            for p in self.backbone.parameters():
                p.requires_grad = self.requires_grad
            for p in self.head.parameters():
                p.requires_grad = self.requires_grad

    with fl.watch() as seen:
        model, head = Frozen(), torch.nn.Linear(3, 3)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            head(model(torch.randn(4, 4))).square().mean().backward()
            optimizer.step()
    assert [f for f in examine(seen) if f.code == "F102"] == []


def test_to_thaw_so_does_nothing_either():
    with fl.watch() as seen:
        model = f102.Net()
        model.backbone.requires_grad_(False)
        model.backbone.requires_grad = True
        f102.train(model, torch.optim.SGD(model.head.parameters(), lr=0.1), 2)
    found = [f for f in examine(seen) if f.severity is not Severity.INFO]
    assert [f.message for f in found] == [
        "requires_grad was set on 1 module, not on parameters: 4 parameters below are still frozen"
    ]
