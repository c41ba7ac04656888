"""What trains and what is held, named by the fewest modules."""

from __future__ import annotations

from torch import nn

from frostline.finetune.told_parts import told_parts
from frostline.tasks import TaskModel, train_task


def model() -> TaskModel:
    trunk = nn.Sequential()
    for name in ("front", "back"):
        trunk.add_module(name, nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    return TaskModel(trunk, {"old": nn.Linear(2, 3), "new": nn.Linear(2, 2)})


def told(strategy: str, *trunk: str) -> tuple[str, str]:
    net = model()
    with train_task(net, "new", trunk=trunk) as training:
        return told_parts(net, strategy, training.hold.reference)


def test_the_head_alone():
    assert told("head", "*") == ("trains: heads.new", "held: trunk, heads.old")


def test_what_is_left_of_the_trunk_trains_too():
    assert told("head", "front") == ("trains: trunk.back, heads.new", "held: trunk.front, heads.old")


def test_a_part_of_a_module_is_named_by_its_tensors():
    trains, held = told("full", "front.0.weight")
    assert trains == "trains: trunk.front.0.bias, trunk.front.1, trunk.back, heads.new"
    assert held == "held: trunk.front.0.weight, heads.old"


def test_what_a_schedule_unfreezes_comes_later():
    trains, held = told("gradual")
    assert trains == "trains: heads.new; later, by --strategy gradual: trunk"
    assert held == "held: heads.old"


def test_buffers_alone_do_not_train():
    net = model()
    net.trunk.add_module("still", nn.BatchNorm1d(2, affine=False))
    with train_task(net, "new", trunk=("front", "back")) as training:
        assert told_parts(net, "head", training.hold.reference)[0] == "trains: heads.new"
