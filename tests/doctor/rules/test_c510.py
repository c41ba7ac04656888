"""C510: tensors that were never initialized."""

import torch
from planted_loops import c510, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
C510 error: 2 tensors of 1 module were not finite before the first step
  seen: 2.weight: holds NaN, shape (3, 8)
        2.bias: holds NaN, shape (3,)
        2.weight, 2.bias: did not come with the load at benchmarks/planted_loops/c510.py:{line}
  at:   benchmarks/planted_loops/c510.py:{line}  model.load_state_dict(state, strict=False)  # <- C510
  fix:  model.get_submodule("2").reset_parameters() before training, or give them values by hand"""


def test_it_is_found_with_its_line():
    found = examine(c510.failing())
    assert found[0].code == "C510"
    assert [f.code for f in found].count("C510") == 1
    line = marked_line(c510.failing, "C510")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c510.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 parameters had finite, ordinary values before the first step" in found.sound


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("mask", torch.full((4, 4), float("-inf")).triu(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) @ (self.mask.softmax(-1))


def test_a_mask_of_infinities_is_silent():
    torch.manual_seed(0)
    model = Masked()
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
    assert "C510" not in [f.code for f in examine(seen)]


def trained(scale: float, *, loaded: bool):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    state = {"weight": torch.full((2, 4), scale), "bias": torch.zeros(2)}
    with fl.watch(model) as seen:
        if loaded:
            model.load_state_dict(state)
        else:
            model.weight.data.fill_(scale)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.randn(2, 4)).sum().backward()
        optimizer.step()
    return [f for f in examine(seen) if f.code == "C510"]


def test_large_values_that_a_checkpoint_brings_are_information():
    assert [f.severity for f in trained(1e5, loaded=True)] == [Severity.INFO]


def test_ordinary_values_are_silent():
    assert trained(10.0, loaded=True) == []


def test_without_training_the_last_load_is_looked_at():
    model = nn.Linear(4, 2)
    with fl.watch(model) as seen:
        model.load_state_dict({"weight": torch.full((2, 4), float("nan")), "bias": torch.zeros(2)})
        model.eval()
        with torch.no_grad():
            model(torch.randn(2, 4))
    told = [f for f in examine(seen) if f.code == "C510"]
    assert [(f.severity, f.paths) for f in told] == [(Severity.ERROR, ("weight",))]
