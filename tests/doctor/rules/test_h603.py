"""H603: forward() was called directly, past every hook."""

import torch
from planted_loops import h603, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/h603.py"


def text(line: int) -> str:
    return f"""\
H603 warning: forward() of model is called directly: its 1 hook did not run
  seen: called at {FILE}:{line}  logits = model.forward(x)  # <- H603
        1 hook on it did not run
  at:   {FILE}:{line}  logits = model.forward(x)  # <- H603
  fix:  model(...) instead of model.forward(...)"""


def test_it_is_found_with_its_line():
    found = examine(h603.failing())
    assert [f.code for f in found] == ["H603"]
    assert str(found[0]) == text(marked_line(h603.failing, "H603"))
    assert (found[0].severity, found[0].paths) == (Severity.WARNING, ("",))


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(h603.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "1 model ran through their hooks, not by forward()" in found.sound


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head.forward(self.body(x))


def train(model, steps: int = 3):
    torch.manual_seed(0)
    with fl.watch() as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(steps):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return seen


def test_a_layer_inside_of_a_model_that_no_hook_is_on():
    found = examine(train(Inside()))
    assert [(f.code, f.severity, f.paths) for f in found] == [("H603", Severity.INFO, ("head",))]
    assert found[0].source == "return self.head.forward(self.body(x))"


def test_a_layer_with_a_hook():
    model = Inside()
    model.head.register_forward_pre_hook(lambda module, args: None)
    found = examine(train(model))
    assert [(f.code, f.severity) for f in found] == [("H603", Severity.WARNING)]
    assert found[0].message == "forward() of head is called directly: its 1 hook did not run"
