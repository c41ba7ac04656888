"""T704: an inner loop that writes into the meta-parameters."""

import torch
from planted_loops import marked_line, t704
from torch import nn

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
T704 error: 4 meta-parameters of model changed in the inner loop, before the outer step
  seen: changed between optimizer steps, up to 2 times: {{0,2}}.weight (x2), {{0,2}}.bias (x2)
        the model is called functionally at benchmarks/planted_loops/t704.py:{at_minus_4}, so its parameters are where \
every task begins
  at:   benchmarks/planted_loops/t704.py:{line}  adapted[name] -= 0.1 * g  # <- T704
  fix:  adapted = {{n: p - rate * g for (n, p), g in zip(adapted.items(), gradients)}}, a new tensor instead of a \
write into the old"""


def test_it_is_found_with_its_line():
    found = examine(t704.failing())
    assert found[0].code == "T704"
    assert [f.code for f in found].count("T704") == 1
    line = marked_line(t704.failing, "T704")
    assert str(found[0]) == TEXT.format(line=line, at_minus_4=line - 4)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(t704.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 meta-parameters changed in outer steps only" in found.sound


def test_weights_that_are_clipped_after_each_step_are_silent_where_nothing_is_called_functionally():
    model, optimizer = t704.make()
    with fl.watch(model, optimizer) as seen:
        for _ in range(3):
            x, y = t704.task()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            with torch.no_grad():
                for p in model.parameters():
                    p.clamp_(-0.1, 0.1)
    assert "T704" not in [f.code for f in examine(seen)]
