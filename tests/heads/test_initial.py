"""Heads that start as torch's own layers start, from a generator alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.heads.initial import laid_out_like, layer_around, memory_order, new_head, starting_values


def made_by_torch(seed: int, make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return make()


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("features", [5, 7, 511])
def test_a_new_head_starts_as_torch_starts_one(bias: bool, dtype: torch.dtype, features: int):
    old = nn.Linear(features, 1000, bias=bias, dtype=dtype)
    expected = made_by_torch(3, lambda: nn.Linear(features, 4, bias=bias)).to(dtype)  # drawn in float32, as ours
    new = new_head(old, 4, torch.Generator().manual_seed(3))
    assert (new.in_features, new.out_features, new.weight.dtype) == (features, 4, dtype)
    assert same_tensors(new, expected)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in new.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda n: nn.Conv1d(6, n, 3, stride=2, padding=1, dilation=2),
        lambda n: nn.Conv2d(6, n, (1, 3), padding="same", bias=False, padding_mode="reflect"),
        lambda n: nn.Conv2d(6, n, 3, groups=2),
        lambda n: nn.Conv3d(6, n, 2, stride=(1, 2, 1)),
    ],
)
def test_a_new_convolution_is_the_old_one_with_another_number_of_channels(make):
    old, expected = make(10), made_by_torch(3, lambda: make(4))
    new = new_head(old, 4, torch.Generator().manual_seed(3))
    assert same_tensors(new, expected)
    assert repr(new) == repr(expected)
    mine, theirs = vars(new), vars(expected)
    assert {k: v for k, v in mine.items() if k != "_parameters"} == {
        k: v for k, v in theirs.items() if k != "_parameters"
    }
    x = torch.randn(2, 6, *[9] * (old.weight.ndim - 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(new(x), expected(x))


def test_a_new_head_draws_nothing_from_the_global_generator():
    before = torch.random.get_rng_state()
    new_head(nn.Linear(5, 3), 4, torch.Generator().manual_seed(0))
    torch.random.set_rng_state(before)
    old, conv = nn.Linear(5, 3), nn.Conv2d(3, 5, 3)
    before = torch.random.get_rng_state()
    new_head(old, 4, torch.Generator().manual_seed(0))
    new_head(conv, 4, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.random.get_rng_state())
    nn.Linear(5, 4)  # torch's own does
    assert not torch.equal(before, torch.random.get_rng_state())


def test_a_subclass_becomes_a_plain_layer_and_no_outputs_are_no_error():
    class Own(nn.Linear):
        pass

    assert type(new_head(Own(3, 2), 4, torch.Generator())) is nn.Linear
    weight, bias = starting_values(nn.Linear(3, 2), 0, torch.Generator())
    assert (weight.shape, bias.shape) == ((0, 3), (0,))
    assert layer_around(nn.Linear(3, 2), torch.ones(4, 3), None).bias is None


LAYOUTS = [
    torch.zeros(4, 6),
    torch.zeros(6, 4).t(),
    torch.zeros(4, 6, 3, 3),
    torch.zeros(4, 6, 3, 3).to(memory_format=torch.channels_last),
    torch.zeros(4, 6, 1, 1),
    torch.zeros(4, 6, 1, 1).to(memory_format=torch.channels_last),
    torch.zeros(4, 1, 3, 3).to(memory_format=torch.channels_last),
    torch.zeros(1, 6, 1, 1).to(memory_format=torch.channels_last),
    torch.zeros(4, 6, 2, 3, 3).to(memory_format=torch.channels_last_3d),
    torch.zeros(4, 6, 5),
]


@pytest.mark.parametrize("like", LAYOUTS, ids=str)
def test_values_lie_in_memory_as_the_old_ones(like: torch.Tensor):
    values = torch.arange(like.numel(), dtype=torch.float32).view(like.shape)
    laid = laid_out_like(like, values)
    assert torch.equal(laid, values)
    assert laid.stride() == like.stride()
    assert laid.data_ptr() != values.data_ptr()
    order, back = memory_order(like)
    assert like.permute(order).permute(back).stride() == like.stride()
