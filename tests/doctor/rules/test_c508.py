"""C508: frozen parameters that the checkpoint of a sharded model lacks."""

import io

import torch
from planted_loops import c508, marked_line
from planted_loops.single_process import process_group

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
C508 warning: the checkpoint of the sharded model lacks 2 frozen parameters
  seen: saved: 4 parameters with 99 values
        frozen, and in no file: 0.0.weight, 0.0.bias, with 40 values
        sharded by fully_shard at benchmarks/planted_loops/c508.py:{at_minus_14}
        the file can only be read into a model that has these parameters from elsewhere
  at:   benchmarks/planted_loops/c508.py:{line}  torch.save(state, io.BytesIO())  # <- C508
  fix:  get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), which gathers frozen \
parameters too"""


def test_it_is_found_with_its_line():
    found = examine(c508.failing())
    assert found[0].code == "C508"
    assert [f.code for f in found].count("C508") == 1
    line = marked_line(c508.failing, "C508")
    assert str(found[0]) == TEXT.format(line=line, at_minus_14=line - 14)
    assert (found[0].severity, found[0].safety) == (Severity.WARNING, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(c508.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "2 frozen parameters of a sharded model went into a file" in found.sound


def test_one_whole_module_is_silent():
    with process_group(), fl.watch() as seen:
        model = c508.train(2)
        torch.save({f"2.{name}": p.full_tensor() for name, p in model[2].named_parameters()}, io.BytesIO())
    assert "C508" not in [f.code for f in examine(seen)]


def test_a_model_that_is_not_sharded_may_save_what_trains():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 3), torch.nn.Linear(3, 3))
    model[0].requires_grad_(False)
    with fl.watch(model) as seen:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        model(torch.randn(4, 4)).sum().backward()
        optimizer.step()
        torch.save({n: p for n, p in model.named_parameters() if p.requires_grad}, io.BytesIO())
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []


def test_a_switch_that_leaves_frozen_parameters_out_makes_it_information():
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, ignore_frozen_params=True)
    with process_group(), fl.watch() as seen:
        torch.save(get_model_state_dict(c508.train(2), options=options), io.BytesIO())
    told = [f for f in examine(seen) if f.code == "C508"]
    assert [f.severity for f in told] == [Severity.INFO]
