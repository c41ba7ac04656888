"""C502: loading a checkpoint that changes nothing."""

import copy

import torch
from planted_loops import c502, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
C502 warning: loading 9 tensors into model changed none: they are its own
  seen: 0 of 9 tensors have other bytes than before
        the tensors that came are the memory of model itself: the result of its own state_dict()
        what was merged into it by name matched nothing, or replaced nothing
  at:   benchmarks/planted_loops/c502.py:{line}  model.load_state_dict(own)  # <- C502
  fix:  frostline.plan_load(model, checkpoint).apply(), which says of each tensor where it comes from"""


def test_it_is_found_with_its_line():
    found = examine(c502.failing())
    assert found[0].code == "C502"
    assert [f.code for f in found].count("C502") == 1
    line = marked_line(c502.failing, "C502")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.MANUAL)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c502.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "1 load_state_dict call changed 4 tensors" in found.sound


def test_a_target_network_that_is_equal_at_the_start_is_information_only():
    online = c502.make()
    target = copy.deepcopy(online)
    with fl.watch([online, target]) as seen:
        target.load_state_dict(online.state_dict())
        nn.functional.mse_loss(online(torch.randn(4, 4)), target(torch.randn(4, 4)).detach()).backward()
    told = [f for f in examine(seen) if f.code == "C502"]
    assert [f.severity for f in told] == [Severity.INFO]


def test_a_start_that_is_loaded_before_every_run_is_silent():
    model = c502.make()
    start = copy.deepcopy(model.state_dict())
    with fl.watch(model) as seen:
        for _ in range(3):
            model.load_state_dict(start)
            c502.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert "C502" not in [f.code for f in examine(seen)]


def test_a_partial_merge_that_changes_some_tensors_is_silent():
    model = c502.make()
    with fl.watch(model) as seen:
        own = model.state_dict()
        own.update({"0.weight": torch.ones(8, 4)})
        model.load_state_dict(own)
        c502.train(model, torch.optim.SGD(model.parameters(), lr=0.1), 1)
    assert "C502" not in [f.code for f in examine(seen)]
