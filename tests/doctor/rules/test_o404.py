"""O404: loading replaced the parameters that the optimizer holds."""

import torch
from planted_loops import marked_line, o404
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Severity

FILE = "benchmarks/planted_loops/o404.py"


def text(line: int) -> str:
    return f"""\
O404 error: load_state_dict(assign=True) put new tensors in the place of 4 of 4 parameters: optimizer steps \
on the old ones, the model never trains
  seen: loaded at {FILE}:{line}  model.load_state_dict(state, assign=True)  # <- O404
        optimizer was made before that, at {FILE}:{line - 1}  optimizer = torch.optim.SGD(model.parameters(), \
lr=0.1)
        4 parameters with gradients, values unchanged in 4 steps
  at:   {FILE}:{line}  model.load_state_dict(state, assign=True)  # <- O404
  fix:  model.load_state_dict(state), which writes into the tensors that there are; or make the optimizer \
after it"""


def test_it_is_found_with_its_line():
    found = examine(o404.failing())
    assert [f.code for f in found] == ["O404"]
    assert str(found[0]) == text(marked_line(o404.failing, "O404"))
    assert (found[0].severity, found[0].paths) == (Severity.ERROR, ("0.weight", "0.bias", "2.weight", "2.bias"))


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(o404.twin())
    assert [str(f) for f in found if f.severity is not Severity.INFO] == []
    assert "after 1 load the optimizers have the parameters that the models have" in found.sound


def test_memory_that_comes_after_the_optimizer():
    torch.manual_seed(0)
    with fl.watch() as seen:
        with torch.device("meta"):
            model = o404.make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.to_empty(device="cpu")
        for p in model.parameters():
            nn.init.normal_(p)
        o404.train(model, optimizer, 3)
    found = examine(seen)
    assert [f.code for f in found] == ["O404"]
    assert found[0].message.startswith("to_empty()")


def test_a_load_that_writes_into_what_is_there_is_right():
    torch.manual_seed(0)
    state = o404.make().state_dict()
    with fl.watch() as seen:
        model = o404.make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.load_state_dict(state)
        o404.train(model, optimizer, 3)
    found = examine(seen)
    assert list(found) == []
    assert "after 1 load the optimizers have the parameters that the models have" in found.sound
