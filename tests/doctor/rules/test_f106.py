"""F106: eval() taken for freezing."""

from __future__ import annotations

import torch
from planted_loops import f106, marked_line
from torch import nn

import frostline as fl
from frostline.audit import Contract
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
F106 warning: eval() does not freeze: 6 parameters of trunk train
  seen: eval() was called on trunk at benchmarks/planted_loops/f106.py:{line}  model.trunk.eval()  # <- F106
        requires_grad is True in 6 parameters below; an optimizer changed them in 4 of 4 steps
        eval mode changes how 2 layers below run; it keeps no weight
  at:   benchmarks/planted_loops/f106.py:{line}  model.trunk.eval()  # <- F106
  fix:  frostline.freeze(model, "trunk")"""


def test_it_is_found_with_its_line_and_grouped():
    found = examine(f106.failing())
    assert [f.code for f in found] == ["F106"]
    line = marked_line(f106.failing, "F106")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)
    assert set(found[0].paths) == {f"trunk.{i}.{name}" for i in (0, 1, 4) for name in ("weight", "bias")}


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(f106.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 part in eval mode kept its weights" in found.sound


def test_where_eval_does_nothing_at_all_it_is_an_error():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.trunk(x))

    with fl.watch() as seen:
        model = Plain()
        model.train()
        model.trunk.eval()
        f106.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    (found,) = examine(seen)
    assert (found.code, found.severity) == ("F106", Severity.ERROR)
    assert "no layer below runs differently in eval mode" in found.evidence


def test_norm_layers_that_are_put_into_eval_mode_are_silent():
    with fl.watch() as seen:
        model = f106.Net()
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        f106.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []


def test_a_part_that_no_optimizer_has_is_silent():
    with fl.watch() as seen:
        model = f106.Net()
        model.train()
        model.trunk.eval()
        f106.train(model, torch.optim.SGD(model.head.parameters(), lr=0.1), 2)
    assert [f for f in examine(seen) if f.code == "F106"] == []


def test_validation_in_between_is_silent():
    with fl.watch() as seen:
        model = f106.Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model.train()
            f106.train(model, optimizer, 2)
            model.eval()
            with torch.no_grad():
                model(torch.randn(4, 4))
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []


DECLARED = """\
F106 error: trunk was declared frozen, and trains: requires_grad is True in 6 parameters
  seen: trunk.4.weight: moved by up to {far} in 4 steps; nothing froze it
  fix:  frostline.freeze(model, "trunk")"""


def test_what_was_declared_and_trains_is_an_error_and_is_mended():
    torch.manual_seed(0)
    model = f106.Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    contract = Contract(frozen=("trunk",), moving=("trunk.*running_*", "trunk.*num_batches*"))
    with fl.watch(model, optimizer, contract=contract) as seen:
        f106.train(model, optimizer, 4)
    found = examine(seen)
    far = f"{max(size for _, size in seen.models[0].tensors['trunk.4.weight'].drift):.3g}"
    assert [str(f) for f in found if f.code == "F106"] == [DECLARED.format(far=far)]
    assert found.apply() == ["F106: a hold on trunk"]
    with fl.watch(model, optimizer, contract=contract) as again:
        f106.train(model, optimizer, 2)
    assert [f for f in examine(again) if f.severity is not Severity.INFO] == []
