"""F110: zeros for gradients, and a frozen part that drifts."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f110, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F110 error: 4 frozen parameters keep moving: optimizer steps on gradients that are not None
  seen: trunk: requires_grad=False since step 2, benchmarks/planted_loops/f110.py:{other}  \
model.trunk.requires_grad_(False)
        gradients are zeros, not None, by benchmarks/planted_loops/f110.py:{line}  \
optimizer.zero_grad(set_to_none=False)  # <- F110
        trunk.2.bias: moved by up to 0.00441 a step, in 4 steps, by SGD with momentum 0.9 and weight decay 0.0001
  at:   benchmarks/planted_loops/f110.py:{line}  optimizer.zero_grad(set_to_none=False)  # <- F110
  fix:  optimizer.zero_grad()  # set_to_none=True is the default
        or frostline.freeze(model, "trunk", optimizer=optimizer)"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f110.failing())
    assert [f.code for f in found] == ["F110"]
    line = marked_line(f110.failing, "F110")
    assert str(found[0]) == TEXT.format(line=line, other=line - 2)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.SAFE)
    assert set(found[0].paths) == {f"trunk.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f110.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 parameters frozen while training stayed from then on" in found.sound


def fit(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
        optimizer.step()


def test_the_remedy_in_memory_holds():
    seen = f110.failing()
    assert examine(seen).apply() == ["F110: a hold on trunk"]
    model, optimizer = seen.models[0].live, seen.optimizers[0].live
    kept = {k: v.clone() for k, v in model.trunk.state_dict().items()}
    with fl.watch(model, optimizer) as again:
        fit(model, optimizer, 3)
    assert [f for f in examine(again) if f.severity is not Severity.INFO] == []
    assert all(v.equal(kept[k]) for k, v in model.trunk.state_dict().items())


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {}, False),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}, True),
    "decay": (torch.optim.SGD, {"weight_decay": 0.1}, True),
    "adam": (torch.optim.Adam, {}, True),
    "adamw": (torch.optim.AdamW, {}, True),
    "adagrad": (torch.optim.Adagrad, {}, False),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_moves_and_what_does_not(name):
    make, settings, moves = OPTIMIZERS[name]
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f110.Net()
        optimizer = make(model.parameters(), lr=0.1, **settings)
        fit(model, optimizer, 2)
        model.trunk.requires_grad_(False)
        kept = {k: v.clone() for k, v in model.trunk.state_dict().items()}
        fit(model, optimizer, 2)
    assert any(not v.equal(kept[k]) for k, v in model.trunk.state_dict().items()) is moves
    found = examine(seen)
    assert [f.code for f in found if f.severity is not Severity.INFO] == (["F110"] if moves else [])
    assert ("4 frozen parameters with a gradient did not move" in found.sound) is not moves


def test_what_was_frozen_from_the_start_has_no_gradient_at_all():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f110.Net()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        fit(model, optimizer, 3)
    assert [f.code for f in examine(seen) if f.code == "F110"] == []


def test_zeros_that_were_there_when_it_was_frozen_are_told_with_their_line():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f110.Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for i in range(4):
            if i == 2:
                model.trunk.requires_grad_(False)
            nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    (found,) = [f for f in examine(seen) if f.severity is not Severity.INFO]
    assert found.code == "F110"
    assert "gradients are zeros, not None, by" in found.evidence
    assert "in 2 steps" in found.evidence
    assert found.source == "optimizer.zero_grad(set_to_none=False)"


def test_zeros_that_were_filled_in_by_hand_are_zeros_too():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f110.Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for i in range(4):
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.zero_()
            if i == 2:
                model.trunk.requires_grad_(False)
            nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            optimizer.step()
    (found,) = [f for f in examine(seen) if f.severity is not Severity.INFO]
    assert found.code == "F110"
    assert "gradients are zeros, not None" in found.evidence
