"""F113: one tensor, two parts."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f113, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F113 warning: freezing embed.weight froze head.weight too: they are one tensor
  seen: embed.weight and head.weight share their memory
        head.weight got no gradient in 4 steps; the rest of head trains
  at:   benchmarks/planted_loops/f113.py:{line}  model.embed.requires_grad_(False)  # <- F113
  fix:  decide for both ends, or untie them: model.head.weight = nn.Parameter(model.head.weight.detach().clone())"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f113.failing())
    assert [f.code for f in found] == ["F113"]
    line = marked_line(f113.failing, "F113")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.MANUAL)
    assert set(found[0].paths) == {"embed.weight", "head.weight"}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f113.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 parameter stayed frozen once a line had frozen them" in found.sound


THAWED = """\
F113 warning: embed.weight sits in a frozen part, and trains as head.weight: they are one tensor
  seen: embed.weight and head.weight share their memory
        embed.weight changed in 4 steps; its neighbours are frozen
  at:   benchmarks/planted_loops/f113.py:{line}  model.head.requires_grad_(True)  # <- F113
  fix:  decide for both ends, or untie them: model.head.weight = nn.Parameter(model.head.weight.detach().clone())"""


def test_to_thaw_the_one_end_thaws_the_other():
    found = [f for f in examine(f113.thawing()) if f.severity is not Severity.INFO]
    assert [str(f) for f in found] == [THAWED.format(line=marked_line(f113.thawing, "F113"))]


def test_what_was_declared_and_trains_as_another_is_an_error():
    found = examine(f113.declared())
    assert [(f.code, f.severity) for f in found] == [("F113", Severity.ERROR)]
    assert found[0].message == "embed.weight was declared frozen, and trains as head.weight"


def tag(prepare):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f113.Tagger(tied=True)
        prepare(model)
        f113.train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), 2)
    found = examine(seen)
    return [f.code for f in found if f.severity is not Severity.INFO], found.sound


def both_frozen(model):
    model.embed.requires_grad_(False)
    model.head.weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)


def both_thawed(model):
    model.requires_grad_(False)
    model.embed.requires_grad_(True)
    model.head.requires_grad_(True)


@pytest.mark.parametrize("prepare", [lambda model: None, both_frozen, both_thawed])
def test_both_ends_alike_are_silent(prepare):
    codes, sound = tag(prepare)
    assert codes == []
    assert "1 tied tensor is frozen or trainable at both ends" in sound
