"""The metric under other statistics, against models that were changed by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from frostline.norms.counterfactuals import Bench, Slice, gain, measure_statistics, row
from frostline.norms.feed import Feed
from frostline.norms.observe import tracked_layers
from frostline.norms.untouched import untouched


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    net[1].running_mean.normal_()
    return net.train()


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 4, generator=generator) + 1, torch.randint(0, 3, (16,), generator=generator)) for _ in range(6)
    ]


def accuracy(model, loader):
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) == y for x, y in loader]).double()


def test_as_it_is_is_eval_mode(model, loader):
    scores = Bench(model, Feed(loader), "accuracy").as_it_is()
    assert torch.equal(scores.values, accuracy(copy.deepcopy(model).eval(), loader))
    assert model.training


def test_under_other_statistics(model, loader):
    mean, var = torch.randn(8).double(), torch.rand(8).double() + 0.5
    bench = Bench(model, Feed(loader), "accuracy")
    before = bench.as_it_is()
    other = copy.deepcopy(model).eval()
    other[1].running_mean.copy_(mean)
    other[1].running_var.copy_(var)
    assert torch.equal(bench.under({"1": (mean, var)}).values, accuracy(other, loader))
    assert torch.equal(bench._score({}).values, before.values)
    assert not torch.equal(bench.under({"1": (mean, var)}).values, before.values)


def test_batch_statistics_without_the_rest_of_train_mode(model, loader):
    """Each batch normalizes itself; dropout stays off, and nothing is updated."""
    by_hand = copy.deepcopy(model).eval()
    by_hand[1].train()
    scores = Bench(model, Feed(loader), "accuracy").with_batch_statistics()
    assert torch.equal(scores.values, accuracy(by_hand, loader))
    assert int(model[1].num_batches_tracked) == 0
    dropped = copy.deepcopy(model).train()
    torch.manual_seed(0)
    assert not torch.equal(scores.values, accuracy(dropped, loader))  # the naive way: dropout is on


def test_dropout_alone(model, loader):
    """Dropout as in train mode, the norm layer as in eval mode; the same draws each time, and none left behind."""
    before = torch.random.get_rng_state()
    bench = Bench(model, Feed(loader), "accuracy")
    scores = bench.with_the_rest_in_train_mode()
    by_hand = copy.deepcopy(model).eval()
    by_hand[3].train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert torch.equal(scores.values, accuracy(by_hand, loader))
    assert torch.equal(bench.with_the_rest_in_train_mode().values, scores.values)
    assert torch.equal(before, torch.random.get_rng_state())
    assert int(model[1].num_batches_tracked) == 0
    plain = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    assert Bench(plain, Feed(loader), "accuracy").with_the_rest_in_train_mode() is None


def test_measured_statistics_are_those_of_the_population(model, loader):
    with untouched(model) as root:
        mean, var = measure_statistics(root, Feed(loader))["1"]
    x = model[0](torch.cat([x for x, _ in loader])).double()
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var, x.var(0), rtol=1e-6, atol=1e-6)
    assert list(tracked_layers(model)) == ["1"]


def test_a_slice_can_be_gone_over_again():
    part = Slice([1, 2, 3, 4], 1, 3)
    assert [list(part), list(part), list(Slice([1, 2, 3], 2))] == [[2, 3], [2, 3], [3]]


def test_gain_is_paired(model, loader):
    bench = Bench(model, Feed(loader), "accuracy")
    same = gain(bench.as_it_is(), bench.as_it_is())
    assert (same.value, same.low, same.high) == (0, 0, 0)
    line = row("E0", "running", bench.as_it_is(), None)
    assert line.gain is None
    assert line.metric.low <= line.metric.value <= line.metric.high
