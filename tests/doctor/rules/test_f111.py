"""F111: a rate of 0 taken for freezing."""

from __future__ import annotations

import pytest
import torch
from planted_loops import f111, marked_line
from torch import nn
from torch.optim import lr_scheduler

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F111 error: group 0 was given the rate 0 to freeze 4 parameters, and CosineAnnealingLR raised it to 0.00206
  seen: group 0 of optimizer (trunk): made with lr=0, more from step 1 on
        CosineAnnealingLR sets the rate of every group
        4 parameters changed in 4 steps
  at:   benchmarks/planted_loops/f111.py:{line}  scheduler.step()  # <- F111
  fix:  frostline.freeze(model, "trunk", optimizer=optimizer)"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f111.failing())
    assert [f.code for f in found] == ["F111"]
    line = marked_line(f111.failing, "F111")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)
    assert set(found[0].paths) == {f"trunk.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f111.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 frozen parameters kept their bytes" in found.sound


STATISTICS = """\
F111 warning: group 0 has the rate 0, but 1 normalization layer of it moved its statistics
  seen: group 0 of optimizer (trunk): lr=0 in every step, no parameter moved
        trunk.1.running_mean: moved in 4 steps; a rate says nothing about statistics, which move in train mode
  at:   benchmarks/planted_loops/f111.py:{line}  optimizer = torch.optim.Adam(groups, lr=0.1)
  fix:  frostline.freeze(model, "trunk", optimizer=optimizer)"""


def test_statistics_move_at_the_rate_0():
    (found,) = examine(f111.statistics())
    assert str(found) == STATISTICS.format(line=found.line)
    assert found.paths == tuple(f"trunk.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked"))


def train(make, *, rate=0.0, steps=4, by_hand=False):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = f111.Net()
        groups = [{"params": model.trunk.parameters(), "lr": rate}, {"params": model.head.parameters()}]
        optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        scheduler = make(optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(torch.randn(16, 4)), torch.randint(3, (16,))).backward()
            optimizer.step()
            scheduler.step()
            if by_hand:
                optimizer.param_groups[0]["lr"] = 0.01
    return [f for f in examine(seen) if f.severity is not Severity.INFO]


RAISING = {
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 10, eta_min=0.01),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=4),
}


@pytest.mark.parametrize("name", RAISING)
def test_schedulers_that_raise_it(name):
    (found,) = train(RAISING[name])
    assert found.code == "F111"
    assert "raised it to" in found.message
    assert found.line > 0


def test_schedulers_that_keep_it():
    assert train(lambda o: lr_scheduler.CosineAnnealingLR(o, 10)) == []
    assert train(lambda o: lr_scheduler.StepLR(o, 2)) == []


def test_a_warm_up_of_one_group_is_silent():
    assert train(lambda o: lr_scheduler.LambdaLR(o, [lambda i: i / 3, lambda i: 1.0]), rate=0.01) == []


def test_a_rate_that_is_raised_by_hand_is_meant():
    assert train(lambda o: lr_scheduler.StepLR(o, 2), by_hand=True) == []
