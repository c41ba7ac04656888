"""F115: a filter by name that matches nothing, or all."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f115, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F115 error: name.startswith('backbone.') matches none of 8 parameters: nothing is frozen
  seen: no flag was set to False on the lines below it
        the names are trunk.0.weight, trunk.0.bias, trunk.1.weight ... head.bias
        8 of 8 parameters of model can train
  at:   benchmarks/planted_loops/f115.py:{line}  if name.startswith("backbone."):  # <- F115
  fix:  compare with the names that the model has; frostline.freeze(model, ...) refuses a pattern that matches \
nothing"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f115.failing())
    assert [f.code for f in found] == ["F115"]
    line = marked_line(f115.failing, "F115")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.MANUAL)
    assert set(found[0].paths) == {f"trunk.{i}.{name}" for i in (0, 1, 3) for name in ("weight", "bias")} | {
        "head.weight",
        "head.bias",
    }


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f115.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 filter by name matched some parameters, and not all" in found.sound


EVERYTHING = """\
F115 error: 'bn' or 'norm' in name matches every one of 8 parameters: nothing of model trains
  seen: 'bn' alone is true: `or` binds weaker than `in`
        the names are trunk.0.weight, trunk.0.bias, trunk.1.weight ... head.bias
        0 of 8 parameters of model can train
        benchmarks/planted_loops/f115.py:{crash}: RuntimeError: \
element 0 of tensors does not require grad and does not have a grad_fn
  at:   benchmarks/planted_loops/f115.py:{line}  if "bn" or "norm" in name:  # noqa: SIM222 # <- F115
  fix:  any(part in name for part in ('bn', ...))"""


def test_a_condition_that_is_always_true_and_the_crash_that_follows():
    seen = f115.everything()
    found = examine(seen)
    text = EVERYTHING.format(line=marked_line(f115.everything, "F115"), crash=seen.crash.place.line)
    assert [str(f) for f in found if f.code == "F115"] == [text]
    assert found[0].code == "F115"


def fit(prepare):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f115.Net()
        prepare(model)
        f115.train(model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1), 2)
    return [f.code for f in examine(seen) if f.severity is not Severity.INFO]


def skipping(model):
    for name, p in model.named_parameters():
        if "classifier" not in name:
            continue
        p.requires_grad = False


def inline(model):
    for name, p in model.named_parameters():
        p.requires_grad = "trunk" in name or "head" in name


def by_list(model):
    prefixes = ["module.trunk", "module.stem"]
    for name, p in model.named_parameters():
        if any(name.startswith(prefix) for prefix in prefixes):
            p.requires_grad = False


def by_children(model):
    for name, child in model.named_children():
        if name in ("conv1", "layer1"):
            for p in child.parameters():
                p.requires_grad = False


@pytest.mark.parametrize("prepare", [skipping, inline, by_list, by_children])
def test_other_ways_to_write_it(prepare):
    assert fit(prepare) == ["F115"]


def empty_list(model):
    freeze = []
    for name, p in model.named_parameters():
        p.requires_grad = True
        if any(part in name for part in freeze):
            p.requires_grad = False


def not_wanted(model):
    if model.training is None:
        by_list(model)


def opposite(model):
    for name, p in model.named_parameters():
        if "head" not in name:
            p.requires_grad = False


def inline_some(model):
    for name, p in model.named_parameters():
        p.requires_grad = "head" in name


def all_of_a_part(model):
    for name, p in model.trunk.named_parameters():
        if "head" not in name:
            p.requires_grad = False


def other_line_makes_up_for_it(model):
    for name, p in model.named_parameters():
        if "backbone" in name or "encoder" in name:
            p.requires_grad = False
    model.trunk.requires_grad_(False)


@pytest.mark.parametrize(
    "prepare", [empty_list, not_wanted, opposite, inline_some, all_of_a_part, other_line_makes_up_for_it]
)
def test_filters_that_do_what_they_are_for_are_silent(prepare):
    assert fit(prepare) == []
