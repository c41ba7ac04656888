"""C506: statistics that a checkpoint lacks."""

import io

import torch
from planted_loops import c506, marked_line
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
C506 error: the checkpoint lacks the statistics of 1 normalization layer that moved in training
  seen: saved: 6 parameters, 0 buffers
        in no file: the statistics of 1 layer: 1
        1.running_mean: moved in 4 steps
        named_parameters() and requires_grad say nothing of statistics: they are buffers
  at:   benchmarks/planted_loops/c506.py:{line}  torch.save(trained, io.BytesIO())  # <- C506
  fix:  save model.state_dict(), or add dict(model.named_buffers())"""


def test_it_is_found_with_its_line():
    found = examine(c506.failing())
    assert found[0].code == "C506"
    assert [f.code for f in found].count("C506") == 1
    line = marked_line(c506.failing, "C506")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c506.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "3 statistics that moved went into a file" in found.sound


def adapter(*, both: bool):
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8)), "head": nn.Linear(8, 3)})
    model["trunk"].requires_grad_(False)
    with fl.watch(model, contract=fl.audit.Contract(moving=("trunk.1.*",))) as seen:
        optimizer = torch.optim.SGD(model["head"].parameters(), lr=0.1)
        for _ in range(3):
            x, y = torch.randn(16, 4), torch.randint(3, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model["head"](model["trunk"](x)), y).backward()
            optimizer.step()
        torch.save(dict(model["head"].named_parameters()), io.BytesIO())
        if both:
            torch.save(dict(model["trunk"].named_buffers()), io.BytesIO())
    return seen


def test_statistics_of_a_frozen_base_that_moved_are_missed_in_the_file_of_the_head():
    (told,) = [f for f in examine(adapter(both=False)) if f.code == "C506"]
    assert told.paths == ("trunk.1.running_mean", "trunk.1.running_var", "trunk.1.num_batches_tracked")
    assert "are frozen, so the base checkpoint has the old statistics" in told.evidence


def test_a_second_file_with_the_statistics_counts():
    assert "C506" not in [f.code for f in examine(adapter(both=True))]


def test_a_layer_that_is_left_out_with_its_parameters_is_not_told_here():
    with fl.watch() as seen:
        model, _ = c506.train(3)
        torch.save(model[3].state_dict(), io.BytesIO())
    assert "C506" not in [f.code for f in examine(seen)]


def test_without_any_file_there_is_nothing_to_say():
    with fl.watch() as seen:
        c506.train(3)
    assert "C506" not in [f.code for f in examine(seen)]
