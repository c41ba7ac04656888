"""The optimizer of a head steps as torch's does, to the bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.fast.head_optimizer import HeadOptimizer
from frostline.state.digest import digest_all


def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(300, 20), nn.ReLU(), nn.Linear(20, 3))


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("sometimes_without_gradient", [False, True])
def test_it_steps_as_torch_does(weight_decay: float, sometimes_without_gradient: bool):
    ours, theirs = net(), net()
    mine = HeadOptimizer(list(ours.parameters()), 0.01, weight_decay)
    reference = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=weight_decay, fused=True)
    generator = torch.Generator().manual_seed(1)
    for step in range(12):
        for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
            drawn = torch.randn(left.shape, generator=generator)
            with_gradient = not sometimes_without_gradient or (left.ndim == 2) != (step % 3 == 0)
            left.grad, right.grad = (drawn, drawn.clone()) if with_gradient else (None, None)
        mine.step()
        reference.step()
        assert digest_all(dict(ours.named_parameters())) == digest_all(dict(theirs.named_parameters()))
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_without_gradients_nothing_happens():
    ours = net()
    before = digest_all(dict(ours.named_parameters()))
    HeadOptimizer(list(ours.parameters()), 0.01, 0.01).step()
    assert digest_all(dict(ours.named_parameters())) == before
