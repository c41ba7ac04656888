"""F120: freezing in a train() that nobody calls."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f120, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F120 error: Net.train() freezes, and was not called before the first step: 6 parameters and the statistics of 1 \
layer moved
  seen: train() was never called; a new module is in train mode without it
        backbone.0.weight: changed in 4 steps
  at:   benchmarks/planted_loops/f120.py:{line}  p.requires_grad = False  # <- F120
  fix:  call model.train() before the first step, or freeze in the constructor, or from outside:
        frostline.freeze(model, "backbone")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f120.failing())
    assert [f.code for f in found] == ["F120"]
    line = marked_line(f120.Net._freeze_backbone, "F120")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.MANUAL)
    assert set(found[0].paths) == {f"backbone.{i}.{n}" for i in (0, 1, 3) for n in ("weight", "bias")} | {
        f"backbone.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f120.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "train() was called in time on 1 class that override it" in found.sound


def test_a_call_that_comes_late_is_said_to_be_late():
    found = examine(f120.late())
    assert found[0].code == "F120"
    assert found[0].evidence.splitlines()[0] == "train() was first called after 4 steps"


class Part(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = f120.Net()

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("call", [True, False])
def test_a_part_of_a_model_is_reached_from_above(call):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Part()
        if call:
            model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        f120.fit(model, optimizer, 3)
    assert [f.code for f in examine(seen) if f.severity is not Severity.INFO] == ([] if call else ["F120"])


class Harmless(f120.Net):
    def train(self, mode=True):
        return super().train(mode)

    def _freeze_backbone(self):
        return


def test_an_override_that_freezes_nothing_is_silent():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Harmless()
        f120.fit(model, torch.optim.SGD(model.parameters(), lr=0.1), 3)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []
