"""C504: an optimizer's state that belongs to other parameters."""

import copy

import torch
from planted_loops import c504, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
C504 error: 4 parameters got the optimizer state of another one
  seen: state of another shape than the parameter's: head.weight, head.bias, trunk.weight, trunk.bias
        load_state_dict of an optimizer goes by position: it compares neither names nor shapes
        later, at benchmarks/planted_loops/c504.py:{at_minus_16}: RuntimeError: The size of tensor a (4) must match \
the size of tensor b (3) at non-singleton dimension 0
  at:   benchmarks/planted_loops/c504.py:{line}  optimizer.load_state_dict(state)  # <- C504
  fix:  make optimizer with the parameters in the order in which they were when it was saved (same model, same \
groups), or start it afresh"""


def test_it_is_found_with_its_line():
    found = examine(c504.failing())
    assert found[0].code == "C504"
    assert [f.code for f in found].count("C504") == 1
    line = marked_line(c504.failing, "C504")
    assert str(found[0]) == TEXT.format(line=line, at_minus_16=line - 16)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.MANUAL)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c504.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 optimizer state that was loaded fits its parameters by shape" in found.sound


def named(model: nn.Module, names: list[str]) -> torch.optim.Optimizer:
    parameters = dict(model.named_parameters())
    return torch.optim.SGD([(name, parameters[name]) for name in names], lr=0.1, momentum=0.9)


def test_names_in_another_order_are_a_warning_where_the_shapes_agree():
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(4, 4), "head": nn.Linear(4, 4)})
    names = [name for name, _ in model.named_parameters()]
    first = named(model, names)
    c504.train(model, first, 1)
    state = copy.deepcopy(first.state_dict())
    with fl.watch(model) as seen:
        optimizer = named(model, names[2:] + names[:2])
        optimizer.load_state_dict(state)
        c504.train(model, optimizer, 1)
    (told,) = [f for f in examine(seen) if f.code == "C504"]
    assert told.severity is Severity.WARNING
    assert "or in another order" in told.message


def test_a_wrapper_in_the_stored_names_is_silent():
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(4, 4), "head": nn.Linear(4, 4)})
    names = [name for name, _ in model.named_parameters()]
    first = named(model, names)
    c504.train(model, first, 1)
    state = copy.deepcopy(first.state_dict())
    for group in state["param_groups"]:
        group["param_names"] = [f"module.{name}" for name in group["param_names"]]
    with fl.watch(model) as seen:
        optimizer = named(model, names)
        optimizer.load_state_dict(state)
        c504.train(model, optimizer, 1)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []


def test_factored_moments_are_silent():
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(4, 4), "head": nn.Linear(4, 3)})
    first = torch.optim.Adafactor(model.parameters(), lr=0.01)
    c504.train(model, first, 1)
    state = copy.deepcopy(first.state_dict())
    with fl.watch(model) as seen:
        optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
        optimizer.load_state_dict(state)
        c504.train(model, optimizer, 1)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []
