"""F101: an attribute that is spelt nearly like requires_grad."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f101, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F101 error: require_grad is not requires_grad: 6 parameters meant to be frozen still train
  seen: require_grad = False was set on 6 parameters; torch never reads it
        requires_grad is still True in 6 parameters; all of them changed in 4 steps
  at:   benchmarks/planted_loops/f101.py:{line}  param.require_grad = False  # <- F101
  fix:  param.requires_grad = False
        or, so that statistics stay too: frostline.freeze(model, "0")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f101.failing())
    assert [f.code for f in found] == ["F101"]
    line = marked_line(f101.failing, "F101")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.SAFE)
    assert set(found[0].paths) == {path for path, _ in f101.make().named_parameters() if path.startswith("0.")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f101.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "no misspelt requires_grad on 8 parameters" in found.sound


def test_the_remedy_in_memory_holds():
    seen = f101.failing()
    before = examine(seen)
    assert before.apply() == ["F101: a hold on 0"]
    model, optimizer = seen.models[0].live, seen.optimizers[0].live
    kept = {k: v.clone() for k, v in model[0].state_dict().items()}
    with fl.watch(model, optimizer) as again:
        f101.train(model, optimizer, 3)
    after = examine(again)
    assert [f for f in after if f.severity is not Severity.INFO] == []
    assert [f.code for f in before.compare(after).gone] == ["F101"]
    assert all(v.equal(kept[k]) for k, v in model[0].state_dict().items())


def spelt(name, value=False):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f101.make()
        for p in model[0].parameters():
            setattr(p, name, value)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        f101.train(model, optimizer, 2)
    return examine(seen)


NAMES = ["require_grad", "requires_grads", "required_grad", "requires_gradient", "Requires_grad"]


@pytest.mark.parametrize("name", NAMES)
def test_other_spellings_and_setattr(name):
    assert [f.code for f in spelt(name)] == ["F101"]


@pytest.mark.parametrize("name", ["lr_scale", "is_norm", "grad_scale", "my_flag"])
def test_other_attributes_are_the_users_own(name):
    assert spelt(name) == []


def test_a_typo_that_asks_for_what_is_so_anyway_is_silent():
    assert spelt("require_grad", value=True) == []


def test_a_typo_on_a_module_counts_too():
    with fl.watch() as seen:
        model = f101.make()
        model[0].require_grad = False
        f101.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    (found,) = examine(seen)
    assert found.message == "require_grad is not requires_grad: 6 parameters meant to be frozen still train"
    assert found.source == "model[0].require_grad = False"


def test_where_no_optimizer_moves_them_it_is_a_warning():
    with fl.watch() as seen:
        model = f101.make()
        for p in model[0].parameters():
            p.require_grad = False
        f101.train(model, torch.optim.SGD(model[1].parameters(), lr=0.1), 2)
    assert [(f.code, f.severity) for f in examine(seen) if f.severity is not Severity.INFO] == [
        ("F101", Severity.WARNING)
    ]
