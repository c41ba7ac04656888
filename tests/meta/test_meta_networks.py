"""The networks are those of the papers: layers, sizes, and what they refuse."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.meta.networks import NETWORKS, conv2, conv4, higher_conv3
from frostline.state.selection import select


def test_conv4_is_four_blocks_of_64_with_28_by_28_down_to_one():
    net = conv4(5)
    kinds = [type(m).__name__ for m in net.modules() if not list(m.children())]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 4 + ["Flatten", "Linear"]
    # 3 x 3 weights and biases of four convolutions, weights and biases of four batch norms, and the classifier.
    assert sum(p.numel() for p in net.parameters()) == (9 * 64 + 64) + 3 * (9 * 64 * 64 + 64) + 4 * 128 + (64 * 5 + 5)


def reference(way: int) -> nn.Sequential:
    """As the example of higher writes it, from its source."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 3),
        nn.BatchNorm2d(64, momentum=1, affine=True),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(64, 64, 3),
        nn.BatchNorm2d(64, momentum=1, affine=True),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, 2),
        nn.Conv2d(64, 64, 3),
        nn.BatchNorm2d(64, momentum=1, affine=True),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, 2),
        nn.Flatten(),
        nn.Linear(64, way),
    )


def test_highers_network_gives_the_same_output_and_statistics_as_its_source():
    torch.manual_seed(0)
    ours = higher_conv3(5)
    torch.manual_seed(0)
    theirs = reference(5)
    x = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ours(x), theirs(x))
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(
    ("make", "least"), [(conv4, 16), (higher_conv3, 22), (conv2, 4)], ids=["conv4", "conv3", "conv2"]
)
def test_the_least_size_is_the_one_that_the_message_names(make: Callable[..., nn.Module], least: int):
    for size in (least, least + 1, 40):
        assert make(3, width=2, channels=3, size=size)(torch.zeros(2, 3, size, size)).shape == (2, 3)
    with pytest.raises(ModelError, match=f"at least {least} x {least}"):
        make(3, width=2, size=least - 1)


@pytest.mark.parametrize("make", list(NETWORKS.values()))
@pytest.mark.parametrize("options", [{"width": 0}, {"channels": 0}, {"way": 0}])
def test_what_is_below_one_is_refused(make: Any, options: dict[str, int]):
    with pytest.raises(ModelError, match="1 or more each"):
        make(**{"way": 5, "size": 28, **options})


@pytest.mark.parametrize("make", list(NETWORKS.values()))
def test_the_head_is_one_selector_and_may_be_left_out(make: Any):
    with_head, without = make(5, width=4, size=28), make(None, width=4, size=28)
    assert set(select(with_head, "head").parameters) == {"head.weight", "head.bias"}
    assert with_head.state_dict().keys() - without.state_dict().keys() == {"head.weight", "head.bias"}
    assert without(torch.zeros(2, 1, 28, 28)).shape[1] == with_head.head.in_features


def test_weights_come_from_the_global_generator_alone():
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(conv4(5, width=4).state_dict())
    same, other = (
        all(torch.equal(a, b) for a, b in zip(one.values(), two.values(), strict=True))
        for one, two in itertools.pairwise(nets)
    )
    assert same
    assert not other
