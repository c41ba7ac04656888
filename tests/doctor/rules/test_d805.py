"""D805: sharded parameters that are not frozen as declared."""

import torch
from planted_loops import d805, marked_line
from planted_loops.single_process import process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import frostline as fl
from frostline.doctor import examine
from frostline.findings import Safety, Severity

TEXT = """\
D805 error: 2 sharded parameters of model that were to be frozen train
  seen: sharded by fully_shard at benchmarks/planted_loops/d805.py:{at_minus_2}
        requires_grad=False was set on 2 parameters that the model had before it was sharded
        trainable, or moved: 0.0.weight, 0.0.bias; optimizer steps moved all of them
  at:   benchmarks/planted_loops/d805.py:{line}  p.requires_grad_(False)  # <- D805
  fix:  model.get_submodule("0").requires_grad_(False) after sharding"""


def test_it_is_found_with_its_line():
    found = examine(d805.failing())
    assert found[0].code == "D805"
    assert [f.code for f in found].count("D805") == 1
    line = marked_line(d805.failing, "D805")
    assert str(found[0]) == TEXT.format(line=line, at_minus_2=line - 2)
    assert (found[0].severity, found[0].safety) == (Severity.ERROR, Safety.UNSAFE)


def test_the_twin_is_silent_and_what_was_right_is_said():
    found = examine(d805.twin())
    assert [f for f in found if f.severity is not Severity.INFO] == []
    assert "2 sharded parameters stayed frozen" in found.sound


def test_what_the_contract_names_and_steps_move_is_found():
    with process_group():
        model = d805.make()
        with fl.watch(model, contract=fl.audit.Contract(frozen=("0",))) as seen:
            fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
            d805.train(model, 2)
    (told,) = [f for f in examine(seen) if f.code == "D805"]
    assert told.paths == ("0.0.weight", "0.0.bias")
    assert not told.inferred


def test_a_part_that_is_thawed_later_is_silent():
    with process_group(), fl.watch() as seen:
        model = d805.make()
        model[0].requires_grad_(False)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            if step == 1:
                model[0].requires_grad_(True)
            optimizer.zero_grad()
            model(torch.randn(8, 4)).sum().backward()
            optimizer.step()
    assert "D805" not in [f.code for f in examine(seen)]


def test_a_part_that_was_frozen_before_sharding_stays_so_and_is_silent():
    with process_group(), fl.watch() as seen:
        model = d805.make()
        model[0].requires_grad_(False)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        d805.train(model, 2)
    assert [f for f in examine(seen) if f.severity is not Severity.INFO] == []
