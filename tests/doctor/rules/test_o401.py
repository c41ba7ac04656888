"""O401: parameters that were unfrozen later are in no optimizer."""

import torch
from planted_loops import marked_line, o401

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o401.py"


def text(line: int) -> str:
    return f"""\
O401 error: no optimizer has 4 parameters (trunk), unfrozen after optimizer was made: they never train
  seen: requires_grad became True after 2 steps, at {FILE}:{line}  model.trunk.requires_grad_(True)  # <- O401
        optimizer has 2 other parameters; made before that, at {FILE}:{line - 2}  optimizer = \
torch.optim.Adam(filter(lambda p: p.requires_grad, model.parameters()), lr=0.01)
        gradients at 2 of 2 later steps, values unchanged
  at:   {FILE}:{line}  model.trunk.requires_grad_(True)  # <- O401
  fix:  optimizer.add_param_group({{"params": model.trunk.parameters()}}), next to the line that unfreezes them"""


def test_it_is_found_with_its_line():
    found = examine(o401.failing())
    assert [f.code for f in found] == ["O401"]
    assert str(found[0]) == text(marked_line(o401.failing, "O401"))
    assert (found[0].severity, found[0].paths) == (
        Severity.ERROR,
        ("trunk.0.weight", "trunk.0.bias", "trunk.2.weight", "trunk.2.bias"),
    )


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o401.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "4 parameters that were unfrozen are in an optimizer" in found.sound


def test_an_optimizer_that_was_made_before_the_watch():
    torch.manual_seed(0)
    model = o401.Net()
    model.trunk.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    with fl.watch(model, optimizer) as seen:
        o401.train(model, optimizer, 2)
        model.trunk[2].requires_grad_(True)
        o401.train(model, optimizer, 2)
    found = examine(seen)
    assert [(f.code, f.paths) for f in found] == [("O401", ("trunk.2.weight", "trunk.2.bias"))]
    assert "model.trunk[2].requires_grad_(True)" in found[0].source


def test_what_was_unfrozen_before_the_optimizer_was_made_is_not_its_matter():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = o401.Net()
        model.trunk.requires_grad_(False)
        model.trunk.requires_grad_(True)
        o401.train(model, torch.optim.SGD(model.head.parameters(), lr=0.1), 3)
    assert [f.code for f in examine(seen) if f.code.startswith("O")] == ["O412"]


def test_unfreezing_without_a_step_afterwards_is_not_reported():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = o401.Net()
        model.trunk.requires_grad_(False)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
        o401.train(model, optimizer, 2)
        model.requires_grad_(True)
    assert list(examine(seen)) == []
