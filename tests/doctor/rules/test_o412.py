"""O412: trainable parameters are in no optimizer."""

import pytest
import torch
from planted_loops import marked_line, o412
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o412.py"


def text(line: int) -> str:
    return f"""\
O412 warning: no optimizer has 1 trainable parameter (conv1): it never trains
  seen: optimizer has 6 parameters of model in 2 groups; made at {FILE}:{line}  optimizer = torch.optim.SGD(  \
# <- O412
        in no optimizer: conv1.weight (108 elements)
        gradients at 4 of 4 steps, values unchanged
  at:   {FILE}:{line}  optimizer = torch.optim.SGD(  # <- O412
  fix:  optimizer.add_param_group({{"params": model.conv1.parameters()}})"""


def test_it_is_found_with_its_line():
    found = examine(o412.failing())
    assert [f.code for f in found] == ["O412"]
    assert str(found[0]) == text(marked_line(o412.failing, "O412"))
    assert (found[0].severity, found[0].paths) == (Severity.WARNING, ("conv1",))


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o412.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "all 7 parameters with gradients are in an optimizer" in found.sound


def train(model, optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        x, y = torch.randn(8, 4), torch.randint(3, (8,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def blocks(count: int = 4) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(4, 4) for _ in range(count)])


@pytest.mark.parametrize(
    ("left", "severity"),
    [
        ([3], Severity.WARNING),  # the head
        ([1], Severity.WARNING),  # one in between
        ([0], Severity.INFO),  # the first of four, of an optimizer with one rate: fixed on purpose
        ([0, 1, 2], Severity.INFO),  # a trunk
        ([1, 2, 3], Severity.INFO),  # all but a prompt
        ([0, 1, 3], Severity.INFO),  # all but one in between
    ],
)
def test_what_is_left_out_is_forgotten_or_meant(left, severity):
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = blocks()
        owned = [p for i, block in enumerate(model) if i not in left for p in block.parameters()]
        train(model, torch.optim.SGD(owned, lr=0.1))
    found = examine(seen)
    assert [(f.code, f.severity) for f in found] == [("O412", severity)]
    assert {path.partition(".")[0] for path in found[0].paths} == set(map(str, left))


def test_a_part_in_eval_mode_is_meant_to_be_left_alone():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = blocks()
        model[3].eval()
        train(model, torch.optim.SGD(model[:3].parameters(), lr=0.1))
    assert [f for f in examine(seen) if f.code == "O412" and f.severity is not Severity.INFO] == []


def test_statistics_of_a_part_that_was_forgotten_are_not_called_frozen():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 3))
        groups = [{"params": model[2].parameters(), "lr": 0.01}, {"params": model[3].parameters()}]
        optimizer = torch.optim.SGD([*groups, {"params": model[0].parameters()}], lr=0.1)
        train(model, optimizer)
    assert [(f.code, f.paths) for f in examine(seen)] == [("O412", ("1",))]


def test_a_layer_that_came_after_the_optimizer():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = blocks()
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model.add_module("extra", nn.Linear(4, 3))
        train(model, optimizer)
    found = examine(seen)
    assert [(f.code, f.severity) for f in found] == [("O412", Severity.WARNING)]
    assert found[0].source == 'model.add_module("extra", nn.Linear(4, 3))'
