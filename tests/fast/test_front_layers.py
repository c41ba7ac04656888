"""The trunk as layers from the input on: what belongs to each, and where a front may end."""

from __future__ import annotations

import pytest
from torch import nn

from frostline.errors import ModelError, NothingSelected
from frostline.fast.front_layers import front_layers


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(nn.init.ones_(nn.Linear(1, 1).weight))
        self.stem = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU())
        self.drop = nn.Dropout()
        self.blocks = nn.Sequential(Block(), nn.Dropout2d(), Block())
        self.fc = nn.Linear(2, 2)


def test_layers_are_told_by_the_modules_that_they_consist_of():
    front = front_layers(Net())
    assert [(layer.depth, layer.title) for layer in front.layers] == [
        (0, "scale, stem"),
        (1, "blocks.0"),
        (2, "blocks.2"),
    ]
    assert front.layers[1].parameters == tuple(
        f"blocks.0.{n}" for n in ("conv.weight", "conv.bias", "bn.weight", "bn.bias")
    )


def test_a_front_takes_whole_modules_and_what_stands_between_them_in_a_sequence():
    net = Net()
    front = front_layers(net)
    # The dropout of the root might run anywhere; that between the blocks runs between them.
    assert [front.parts(net, count) for count in range(4)] == [
        [],
        ["scale", "stem"],
        ["scale", "stem", "blocks.0"],
        ["scale", "stem", "blocks"],
    ]


def test_a_dropout_behind_the_front_is_none_of_it():
    model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(), nn.Linear(1, 1), nn.Dropout(), nn.Linear(1, 1))
    front = front_layers(model, head="4")
    assert [front.parts(model, count) for count in (1, 2)] == [["0"], ["0", "1", "2"]]


def test_a_module_that_stands_elsewhere_too_is_none_of_it():
    drop = nn.Dropout()
    model = nn.Sequential(nn.Linear(1, 1), drop, nn.Linear(1, 1), drop, nn.Linear(1, 1))
    assert front_layers(model, head="4").parts(model, 2) == ["0", "2"]


def test_without_a_head_the_deepest_layer_is_the_head():
    front = front_layers(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)))
    assert [layer.title for layer in front.layers] == ["0", "1"]


def test_a_head_alone_has_no_front():
    with pytest.raises(ModelError, match="nothing comes before the head"):
        front_layers(nn.Sequential(nn.Linear(1, 1)), head="0")


def test_a_head_that_is_not_there():
    with pytest.raises(NothingSelected):
        front_layers(Net(), head="heads")


def test_a_front_may_not_end_between_two_names_of_one_tensor():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    model[2].weight = model[0].weight
    front = front_layers(model, head="3")
    assert [front.may_end_behind(count) for count in range(4)] == [True, False, False, True]
    assert "2.weight" not in front.layers[2].parameters


def test_nor_where_the_head_shares_a_tensor_with_it():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    model[2].weight = model[0].weight
    assert [front_layers(model, head="2").may_end_behind(count) for count in (1, 2)] == [False, False]


def test_a_layer_is_found_by_depth_and_by_title():
    front = front_layers(Net())
    assert (front.find(1), front.find("blocks.2")) == (1, 2)
    with pytest.raises(ModelError, match=r"no front layer is 'fc'\n  found: 0 scale, stem, 1 blocks.0, 2 blocks.2"):
        front.find("fc")


def test_trainable_leaves_out_what_is_frozen():
    net = Net()
    front = front_layers(net)
    net.stem.requires_grad_(False)
    net.blocks[0].requires_grad_(False)
    found = front.trainable(net)
    assert {depth: list(members) for depth, members in found.items()}[0] == ["scale"]
    assert list(found) == [0, 2]
