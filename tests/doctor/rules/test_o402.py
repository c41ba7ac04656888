"""O402: the optimizer holds parameters that the model no longer has."""

import torch
from planted_loops import marked_line, o402
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o402.py"


def text(line: int) -> str:
    return f"""\
O402 error: fc was replaced after optimizer was made, which steps on the old tensors: the new part never trains
  seen: replaced at {FILE}:{line}  model.fc = nn.Linear(8, 3)  # <- O402
        optimizer still has 2 old parameters; made before that, at {FILE}:{line - 1}  optimizer = \
torch.optim.SGD(model.parameters(), lr=0.1)
        2 new parameters with gradients, values unchanged in 4 steps
  at:   {FILE}:{line}  model.fc = nn.Linear(8, 3)  # <- O402
  fix:  make the optimizer after the replacement, or optimizer.add_param_group({{"params": \
model.fc.parameters()}}) behind it"""


def test_it_is_found_with_its_line():
    found = examine(o402.failing())
    assert [f.code for f in found] == ["O402"]
    assert str(found[0]) == text(marked_line(o402.failing, "O402"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ("fc", "fc.weight", "fc.bias"))


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o402.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "all 4 parameters of 1 optimizer belong to a model that was seen" in found.sound


def test_a_head_of_another_shape_of_module():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = o402.Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.fc = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        o402.train(model, optimizer, 3)
    found = examine(seen)
    assert [f.code for f in found] == ["O402"]
    assert found[0].paths == ("fc", "fc.weight", "fc.bias")


def test_both_happened_before_the_watch():
    torch.manual_seed(0)
    model = o402.Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.fc = nn.Linear(8, 3)
    with fl.watch(model, optimizer) as seen:
        o402.train(model, optimizer, 3)
    found = examine(seen)
    assert [(f.code, f.severity, f.inferred) for f in found] == [("O402", Severity.WARNING, True)]
    assert found[0].paths == ("fc",)
    assert "10x8, 10" in found[0].evidence
