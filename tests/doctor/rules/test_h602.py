"""H602: a trainable parameter never gets a gradient."""

import torch
from planted_loops import h602, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/h602.py"


def text(line: int) -> str:
    return f"""\
H602 warning: scale never gets a gradient: forward() reads its value past autograd
  seen: its gradient was None in all 4 steps, although an optimizer has it
        read at {FILE}:{line}  return self.body(x) * self.scale.item()  # <- H602
  at:   {FILE}:{line}  return self.body(x) * self.scale.item()  # <- H602
  fix:  use self.scale itself there"""


def test_it_is_found_with_its_line():
    found = examine(h602.failing())
    assert [f.code for f in found] == ["H602"]
    assert str(found[0]) == text(marked_line(h602.Fixed, "H602"))
    assert (found[0].severity, found[0].paths) == (Severity.WARNING, ("scale",))


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(h602.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "all 3 trainable parameters in the optimizers had gradients" in found.sound


def test_a_loss_that_is_cut_off_from_the_model():
    found = examine(h602.cut_off())
    assert [(f.code, f.severity) for f in found] == [("H602", Severity.ERROR)]
    assert found[0].line == marked_line(h602.cut_off, "H602 cut off")
    assert found[0].paths == ("weight", "bias")


class WithAHeadToSpare(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.spare = nn.Linear(4, 3)
        self.token = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return self.body(x)


def test_what_is_not_used_is_for_information_and_says_whether_it_ran():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = WithAHeadToSpare()
        h602.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 4)
    found = examine(seen)
    assert [(f.code, f.severity) for f in found] == [("H602", Severity.INFO)]
    assert "did not run in the passes that were looked at: spare" in found[0].evidence
    assert set(found[0].paths) == {"spare.weight", "spare.bias", "token"}


def test_two_steps_are_too_few_to_say_so():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = WithAHeadToSpare()
        h602.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 2)
    assert list(examine(seen)) == []
