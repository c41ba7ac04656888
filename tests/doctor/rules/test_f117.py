"""F117: a trainable part without gradients."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f117, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F117 warning: backbone looks as if it trained, and cannot: 4 parameters never get a gradient
  seen: optimizer has 4 parameters of it, with requires_grad=True; .grad was None in each of 4 steps
        it runs with gradients switched off (seen in 2 passes), while the rest of the model has them on
  at:   benchmarks/planted_loops/f117.py:{line}  with torch.no_grad():  # <- F117
  fix:  to train it, remove no_grad(); to keep it, say so:
        frostline.freeze(model, "backbone")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f117.failing())
    assert [f.code for f in found] == ["F117"]
    line = marked_line(f117.CutNet.forward, "F117")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)
    assert set(found[0].paths) == {f"backbone.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f117.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "6 trainable parameters got gradients" in found.sound


@pytest.mark.parametrize("loop", [f117.detached, f117.from_outside])
def test_other_ways_to_cut_it_off(loop):
    (found,) = (f for f in examine(loop()) if f.severity is not Severity.INFO)
    assert found.code == "F117"
    assert found.source == ("features = features.detach()" if loop is f117.detached else "with torch.no_grad():")
    assert len(found.paths) == 4


def test_without_an_optimizer_for_it_it_is_feature_extraction():
    with fl.watch() as seen:
        model = f117.CutNet()
        f117.train(model, torch.optim.SGD(model.head.parameters(), lr=0.1), 2)
    assert [f for f in examine(seen) if f.code == "F117"] == []


def test_a_frozen_part_is_silent():
    with fl.watch() as seen:
        model = f117.CutNet()
        fl.freeze(model, "backbone")
        f117.train(model, torch.optim.SGD(model.head.parameters(), lr=0.1), 2)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []


class Spare(f117.Net):
    def __init__(self):
        super().__init__()
        self.spare = torch.nn.Linear(8, 2)

    def forward(self, x):
        features = self.backbone(x)
        self.kept = self.spare(features)
        return self.head(features)


def test_a_head_that_no_loss_uses_is_another_matter():
    with fl.watch() as seen:
        model = Spare()
        f117.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 3)
    assert [f for f in examine(seen) if f.code == "F117"] == []
