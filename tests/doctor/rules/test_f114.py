"""F114: made anew after freezing."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f114, marked_line
from torch import nn

import frostline as fl
from frostline.audit import Contract
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F114 warning: encoder.embed was made anew after encoder had been frozen, and trains
  seen: what stood at encoder.embed was frozen; what took its place has requires_grad=True, as all that is new
        1 parameter changed in 4 steps
  at:   benchmarks/planted_loops/f114.py:{line}  model.encoder.embed = grown(model.encoder.embed, 2)  # <- F114
  fix:  freeze after the last change of the model:
        frostline.freeze(model, "encoder.embed")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f114.failing())
    assert [f.code for f in found] == ["F114"]
    line = marked_line(f114.failing, "F114")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)
    assert set(found[0].paths) == {"encoder.embed.weight"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f114.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "5 parameters stayed frozen once a line had frozen them" in found.sound


def tag(change, contract=None):
    torch.manual_seed(0)
    model = f114.Tagger()
    with fl.watch(model, contract=contract) as seen:
        model.encoder.requires_grad_(False)
        change(model)
        f114.train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), 3)
    return [(f.code, f.severity) for f in examine(seen) if f.severity is not Severity.INFO]


def by_parameter(model):
    model.encoder.embed.register_parameter("weight", nn.Parameter(torch.randn(12, 8)))


def declared_trainable(model):
    model.encoder.embed = f114.grown(model.encoder.embed, 2).requires_grad_(True)
    model.encoder.embed.requires_grad_(True)


def frozen_too(model):
    model.encoder.embed = f114.grown(model.encoder.embed, 2).requires_grad_(False)


def new_head(model):
    model.encoder.embed = f114.grown(model.encoder.embed, 2).requires_grad_(False)
    model.requires_grad_(False)
    model.head = nn.Linear(8, 3)


class Adapter(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.up = inner, nn.Linear(8, 8)

    def forward(self, x):
        return self.inner(x) + self.up(x)


def adapter(model):
    model.encoder.embed = f114.grown(model.encoder.embed, 2).requires_grad_(False)
    model.encoder.layers[2] = Adapter(model.encoder.layers[2])


def test_register_parameter_too():
    assert tag(by_parameter) == [("F114", Severity.WARNING)]


def test_where_it_was_declared_it_is_an_error():
    assert tag(by_parameter, Contract(frozen=("encoder",))) == [("F114", Severity.ERROR)]


@pytest.mark.parametrize("change", [declared_trainable, frozen_too, new_head, adapter])
def test_what_is_meant_is_silent(change):
    assert tag(change) == []
