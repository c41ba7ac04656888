"""T702: functional calls that write to the module's own statistics."""

import torch
from planted_loops import marked_line, t702
from torch import nn
from torch.func import functional_call

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
T702 warning: 9 functional calls with adapted parameters moved the statistics of 1 layer of model itself
  seen: functional_call in train mode at benchmarks/planted_loops/t702.py:{line}, 6 tensors given
        not given, so the module's own were written to: 1.running_mean, 1.running_var, 1.num_batches_tracked
        what a call is not given it takes from the module, statistics included, and writes there
  at:   benchmarks/planted_loops/t702.py:{line}  loss = nn.functional.cross_entropy(functional_call(model, adapted, \
(x[:5],)), y[:5])  # <- T702
  fix:  buffers = {{n: b.clone() for n, b in model.named_buffers()}} for each task, and functional_call(model, \
{{**adapted, **buffers}}, ...)"""


def test_it_is_found_with_its_line():
    found = examine(t702.failing())
    assert found[0].code == "T702"
    assert [f.code for f in found].count("T702") == 1
    line = marked_line(t702.failing, "T702")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(t702.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "9 functional calls left the module's own statistics alone" in found.sound


def test_an_ordinary_loop_that_calls_with_the_own_parameters_is_silent():
    model, optimizer = t702.make()
    with fl.watch(model, optimizer) as seen:
        for _ in range(3):
            x, y = t702.task()
            optimizer.zero_grad()
            logits = functional_call(model, dict(model.named_parameters()), (x,))
            nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []


def test_a_network_without_statistics_is_silent():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = t702.task()
        doubled = {name: p * 2 for name, p in model.named_parameters()}
        nn.functional.cross_entropy(functional_call(model, doubled, (x,)), y).backward()
        optimizer.step()
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []
