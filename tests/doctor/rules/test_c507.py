"""C507: trained parameters that a checkpoint lacks."""

import io

import pytest
import torch
from planted_loops import c507, marked_line

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
C507 error: 2 trained parameters (27 values) of model are in no checkpoint
  seen: saved: 2 parameters: 0.lora_a, 0.lora_b
        trained, and in no file: 2.weight, 2.bias
        of 4 parameters that trained, 2 are saved
  at:   benchmarks/planted_loops/c507.py:{line}  torch.save(adapter, io.BytesIO())  # <- C507
  fix:  save every parameter that trains: {{n: p for n, p in model.named_parameters() if p.requires_grad}}, and the \
buffers"""


def test_it_is_found_with_its_line():
    found = examine(c507.failing())
    assert found[0].code == "C507"
    assert [f.code for f in found].count("C507") == 1
    line = marked_line(c507.failing, "C507")
    assert str(found[0]) == TEXT.format(line=line)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c507.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "4 trained parameters went into a file" in found.sound


@pytest.mark.parametrize("save", [lambda model: model[2].weight, lambda model: [model[2].weight]])
def test_a_bare_tensor_or_a_list_is_no_checkpoint(save):
    with fl.watch() as seen:
        model = c507.train(2)
        torch.save(save(model), io.BytesIO())
    assert "C507" not in [f.code for f in examine(seen)]


def test_one_whole_module_and_nothing_else_looks_meant():
    with fl.watch() as seen:
        model = c507.train(2)
        torch.save(model[2].state_dict(), io.BytesIO())
    told = [f for f in examine(seen) if f.code == "C507"]
    assert [f.severity for f in told] == [Severity.INFO]
    assert "all of 2 and nothing else was saved, which looks meant" in told[0].evidence


def test_what_another_file_has_is_saved():
    with fl.watch() as seen:
        model = c507.train(2)
        torch.save({n: p for n, p in model.named_parameters() if "lora_" in n}, io.BytesIO())
        torch.save(model[2].state_dict(), io.BytesIO())
    assert "C507" not in [f.code for f in examine(seen)]


def test_a_loop_that_was_stopped_may_still_save_them():
    seen = c507.failing()
    seen.ended = "stopped"
    assert examine(seen)[0].severity is Severity.WARNING
