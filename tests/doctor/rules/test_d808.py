"""D808: a compiled step that kept an old state of freezing."""

from planted_loops import d808, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
D808 error: 2 parameters of the compiled model were unfrozen and did not move in 2 steps since
  seen: requires_grad=True at benchmarks/planted_loops/d808.py:{line}, after 2 steps: 0.0.weight, 0.0.bias
        in optimizer, which stepped; they had no gradient and kept their bytes
        the compiled graph was made while they were frozen, and computes no gradient for them
  at:   benchmarks/planted_loops/d808.py:{line}  model[0].requires_grad_(True)  # <- D808
  fix:  torch.compiler.reset() after unfreezing, or compile model anew"""


def test_it_is_found_with_its_line():
    found = examine(d808.failing())
    assert found[0].code == "D808"
    assert [f.code for f in found].count("D808") == 1
    line = marked_line(d808.failing, "D808")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(d808.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "2 parameters that were unfrozen in a compiled model train" in found.sound


def test_a_part_that_is_unfrozen_without_compilation_and_trains_is_silent():
    model, optimizer = d808.make()
    with fl.watch(model, optimizer) as seen:
        d808.train(model, optimizer, 2)
        model[0].requires_grad_(True)
        d808.train(model, optimizer, 2)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []
