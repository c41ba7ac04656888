"""H601: layers are kept in a plain list or dict: torch does not see them."""

import torch
from planted_loops import h601, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/h601.py"


def text(line: int) -> str:
    return f"""\
H601 error: layers keeps 6 parameters in a plain list: torch does not see these layers, and they never train
  seen: model.layers is a list with modules that have 6 parameters; 6 of them get gradients
        model.parameters() and state_dict() do not list them; train(), eval() and to() do not reach them
        no optimizer has them: they never train
  at:   {FILE}:{line}  self.layers = [nn.Linear(8, 8) for _ in range(3)]  # <- H601
  fix:  self.layers = nn.ModuleList(...)"""


def test_it_is_found_with_its_line():
    found = examine(h601.failing())
    assert [f.code for f in found] == ["H601"]
    assert str(found[0]) == text(marked_line(h601.Listed, "H601"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ("layers",))


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(h601.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert (
        "every tensor that the first backward passes reach belongs to a model: no layer is hidden in a list or dict"
        in found.sound
    )


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.heads = {"first": nn.Linear(4, 3), "second": nn.Linear(4, 3)}

    def forward(self, x):
        return sum(head(self.stem(x)) for head in self.heads.values())


def test_a_dict_whose_parameters_were_given_to_the_optimizer_by_hand():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = Named()
        by_hand = [p for head in model.heads.values() for p in head.parameters()]
        h601.train(model, torch.optim.SGD([*model.parameters(), *by_hand], lr=0.1), 3)
    found = examine(seen)
    assert [(f.code, f.severity) for f in found] == [("H601", Severity.WARNING)]
    assert found[0].source.startswith('self.heads = {"first"')
    assert found[0].remedy == "self.heads = nn.ModuleDict(...)"


def test_a_list_in_a_part_of_the_model():
    torch.manual_seed(0)
    with fl.watch() as seen:
        model = nn.Sequential(nn.Linear(4, 4), h601.Listed())
        h601.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 3)
    found = examine(seen)
    assert [(f.code, f.paths) for f in found] == [("H601", ("1.layers",))]
