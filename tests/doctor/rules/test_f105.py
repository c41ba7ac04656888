"""F105: the switches of other frameworks."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f105, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F105 error: trainable is an idiom of Keras, PyTorch does not know it: 4 parameters still train
  seen: trainable = False was set on 4 modules; torch never reads it
        requires_grad is still True in 4 parameters; all of them changed in 4 steps
  at:   benchmarks/planted_loops/f105.py:{line}  layer.trainable = False  # <- F105
  fix:  frostline.freeze(model, "backbone")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f105.failing())
    assert [f.code for f in found] == ["F105"]
    line = marked_line(f105.failing, "F105")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.SAFE)
    assert set(found[0].paths) == {f"backbone.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f105.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 frozen parameters kept their bytes" in found.sound


def test_the_remedy_in_memory_holds():
    seen = f105.failing()
    assert examine(seen).apply() == ["F105: a hold on backbone"]
    model, optimizer = seen.models[0].live, seen.optimizers[0].live
    with fl.watch(model, optimizer) as again:
        f105.train(model, optimizer, 3)
    assert [f for f in examine(again) if f.severity is not Severity.INFO] == []


@pytest.mark.parametrize(("name", "value"), [("trainable", False), ("stop_gradient", True)])
def test_on_parameters_too(name, value):
    with fl.watch() as seen:
        model = f105.Net()
        for p in model.backbone.parameters():
            setattr(p, name, value)
        f105.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    assert [f.code for f in examine(seen)] == ["F105"]


class Switched(f105.Net):
    """A class with an option of its own."""

    def __init__(self, trainable):
        super().__init__()
        self.trainable = trainable

    def forward(self, x):
        with torch.set_grad_enabled(self.trainable):
            features = self.backbone(x)
        return self.head(features)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_class_that_acts_on_its_own_option_is_silent(trainable):
    with fl.watch() as seen:
        model = Switched(trainable)
        f105.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    assert [f for f in examine(seen) if f.code == "F105"] == []
