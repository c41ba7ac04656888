"""Momentum for several forward passes per step: the figures, on layers that run; and that everything comes back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline.errors import NormsError, NoStatistics
from frostline.norms import EMA, StatsPolicy
from frostline.norms.domain_split import split_domains
from frostline.norms.momentum import momentum_for, rescale_momentum
from frostline.norms.policed import set_policy
from frostline.norms.step_commit import step_commit


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_figures():
    assert round(momentum_for(0.1, 8), 5) == 0.01308
    assert momentum_for(0.1, 8) > 0.1 / 8  # the approximation m / k forgets too slowly
    assert momentum_for(0.1, 2) == pytest.approx(1 - 0.9**0.5, rel=1e-15)
    assert [momentum_for(m, k) for m, k in ((0.0, 5), (1.0, 5), (0.3, 1))] == [0.0, 1.0, pytest.approx(0.3, rel=1e-15)]
    # Where (1 - m) ** (1 / k) would have no digits left.
    assert momentum_for(1e-17, 4) == 2.5e-18
    with pytest.raises(NormsError, match="one forward pass at least, not 0"):
        momentum_for(0.1, 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        momentum_for(-0.1, 2)


def weights(layer, forwards):
    """What the batch of so many forward passes ago weighs now: the layer's response to one batch of mean 1."""
    layer = copy.deepcopy(layer).double()
    layer(torch.tensor([[0.0], [2.0]], dtype=torch.float64))
    found = [layer.running_mean.item()]
    for _ in range(forwards):
        layer(torch.tensor([[-1.0], [1.0]], dtype=torch.float64))
        found.append(layer.running_mean.item())
    return torch.tensor(found)


@pytest.mark.parametrize("rescaled", [True, False])
def test_memory_and_noise_of_eight_micro_batches(rescaled):
    layer = nn.BatchNorm1d(1, momentum=0.1)
    full_batch = weights(layer, 400).square().sum()
    assert round(full_batch.item(), 4) == 0.0526  # m / (2 - m)
    if rescaled:
        rescale_momentum(layer, 8)
    # A micro-batch's mean has eight times the variance of that of the whole batch.
    noise = 8 * weights(layer, 3200).square().sum()
    kept = (1 - layer.momentum) ** 8
    assert (round(noise.item(), 4), round(kept, 2)) == ((0.0527, 0.9) if rescaled else (0.4211, 0.43))


@pytest.mark.parametrize("reentrant", [True, False])
def test_exact_under_activation_checkpointing(reentrant):
    plain = nn.Sequential(nn.BatchNorm1d(3, momentum=0.1), nn.Linear(3, 1)).double()
    naive, rescaled = copy.deepcopy(plain), copy.deepcopy(plain)
    rescale_momentum(rescaled, 2)
    for _ in range(5):
        x = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
        plain(x)
        for model in (naive, rescaled):
            checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    # float64: ten roundings of values of size 1
    assert torch.allclose(rescaled[0].running_mean, plain[0].running_mean, rtol=0, atol=1e-14)
    assert torch.allclose(rescaled[0].running_var, plain[0].running_var, rtol=0, atol=1e-14)
    assert not torch.allclose(naive[0].running_mean, plain[0].running_mean, rtol=0, atol=1e-3)


def test_restored_exactly_also_after_an_exception():
    model = nn.Sequential(
        nn.BatchNorm1d(2, momentum=0.3), nn.InstanceNorm1d(2, track_running_stats=True), nn.LayerNorm(2)
    )
    before = [dict(m.__dict__) for m in model.modules()]
    with pytest.raises(KeyError), rescale_momentum(model, 4) as handle:
        assert [model[0].momentum, model[1].momentum] == [momentum_for(0.3, 4), momentum_for(0.1, 4)]
        assert handle.before == {"0": 0.3, "1": 0.1}
        raise KeyError
    assert [dict(m.__dict__) for m in model.modules()] == before
    handle = rescale_momentum(model, 4, "0")
    model[0].momentum = 0.7
    handle.remove()
    handle.remove()
    assert model[0].momentum == 0.7


def test_refused_whole_with_momentum_none():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, momentum=None))
    with pytest.raises(NormsError, match=r"momentum=None in 1: .*neither has a memory"):
        rescale_momentum(model, 4)
    assert model[0].momentum == 0.1
    assert list(rescale_momentum(model, 4, "0").layers) == ["0"]


def test_left_alone_and_why():
    model = nn.Sequential(*[nn.BatchNorm1d(2) for _ in range(5)])
    fl.freeze(model, "0")
    set_policy(model, "1", train=StatsPolicy("batch", EMA(0.5)))
    step_commit(model, torch.optim.SGD(model.parameters(), lr=0.1), "2")
    split_domains(model, ["a", "b"], "3")
    handle = rescale_momentum(model, 2)
    assert handle.skipped == {
        "0": "held",
        "1": "in train mode it uses batch, updates ema(0.5)",
        "2": "in train mode it uses batch, updates once per step(0.1)",
    }
    assert list(handle.layers) == ["3", "4"]
    model[4].track_running_stats = False
    handle.remove()
    with pytest.raises(NoStatistics, match="1 left as they are"):
        rescale_momentum(model, 2, "4")
