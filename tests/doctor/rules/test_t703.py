"""T703: statistics that reach from one task into the next."""

import copy

import torch
from planted_loops import marked_line, t703
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
T703 warning: 3 tasks began with the weights set back and the statistics of the task before
  seen: set back 3 times by this line, each time followed by optimizer steps
        it brought 6 of 9 tensors; not among them: 1.running_mean, 1.running_var
        1.running_mean moved, and began the next task as the last one had left it
  at:   benchmarks/planted_loops/t703.py:{line}  model.load_state_dict(start, strict=False)  # <- T703
  fix:  start = copy.deepcopy(model.state_dict()), with the buffers, and model.load_state_dict(start) before each \
task"""


def test_it_is_found_with_its_line():
    found = examine(t703.failing())
    assert found[0].code == "T703"
    assert [f.code for f in found].count("T703") == 1
    line = marked_line(t703.failing, "T703")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(t703.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "3 tasks began with weights and statistics set back" in found.sound


def test_weights_of_an_average_that_are_swapped_in_for_validation_are_silent():
    model = t703.make()
    averaged = {name: p.detach().clone() for name, p in model.named_parameters()}
    with fl.watch(model) as seen:
        for _ in range(3):
            t703.train_and_test(model)
            own = {name: p.detach().clone() for name, p in model.named_parameters()}
            for weights in (averaged, own):
                model.load_state_dict(weights, strict=False)
    assert "T703" not in [f.code for f in examine(seen)]


def test_a_whole_norm_layer_that_stays_local_is_silent():
    model = t703.make()
    common = {name: p.detach().clone() for name, p in model.named_parameters() if not name.startswith("1.")}
    with fl.watch(model) as seen:
        for _ in range(3):
            model.load_state_dict(common, strict=False)
            t703.train_and_test(model)
    assert "T703" not in [f.code for f in examine(seen)]


def test_an_optimizer_that_goes_on_over_the_tasks_is_information():
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    start = copy.deepcopy(model.state_dict())
    with fl.watch(model) as seen:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            model.load_state_dict(start)
            for _ in range(2):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(torch.randn(8, 4)), torch.randint(2, (8,))).backward()
                optimizer.step()
    told = [f for f in examine(seen) if f.code == "T703"]
    assert [f.severity for f in told] == [Severity.INFO]
    assert "keeps momenta or averages" in told[0].evidence
