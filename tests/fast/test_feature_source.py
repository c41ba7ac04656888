"""Features by number: from memory, and from a trunk that runs once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.errors import DataError, ModelError
from frostline.fast.feature_source import FeaturesInMemory, FeatureSource, features_of, gather
from frostline.state.snapshot import snapshot


class Counting(nn.Module):
    """Gives the mean of its batch too, so that a chunk of another size would show."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("runs", torch.zeros(()))
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.sizes.append(len(x))
        return self.norm(x)


def test_features_in_memory_are_a_source():
    source = FeaturesInMemory((torch.arange(4.0), torch.ones(4, 2)))
    assert isinstance(source, FeatureSource)
    assert not isinstance(torch.ones(2), FeatureSource)
    assert len(source) == 4
    first, second = source.batch(torch.tensor([3, 1]))[0]
    assert first.tolist() == [3.0, 1.0]
    assert second.shape == (2, 2)


def test_what_is_gathered_is_the_callers_own():
    kept = torch.ones(3, 2, requires_grad=True)
    (given,) = gather(FeaturesInMemory(kept), torch.arange(3), 0, torch.device("cpu"))
    assert not given.requires_grad
    given.zero_()
    assert kept.tolist() == [[1.0, 1.0]] * 3


@pytest.mark.parametrize("given", [torch.zeros(0, 3), torch.tensor(1.0), (), (torch.ones(2), torch.ones(3))])
def test_features_that_do_not_belong_together_are_refused(given: Any):
    with pytest.raises(DataError, match="cannot be used"):
        FeaturesInMemory(given)


def test_a_trunk_runs_on_chunks_of_one_size_and_is_left_as_it_was():
    trunk = Counting().train()
    before = snapshot(trunk)
    x = torch.randn(10, 3)
    (given,) = features_of(trunk, x, rows=4)
    assert trunk.sizes == [4, 4, 4]
    assert not before.diff(trunk)
    assert torch.equal(given, trunk.eval()(x))
    assert not given.requires_grad


def test_chunks_may_come_one_by_one():
    x = torch.randn(10, 3)
    whole = features_of(nn.Identity(), x, rows=4)
    assert torch.equal(whole[0], features_of(nn.Identity(), iter(x.split([4, 1, 0, 3, 2])), rows=4)[0])
    with pytest.raises(DataError, match="a chunk has 10 samples, and rows=4"):
        features_of(nn.Identity(), [x], rows=4)


class Gives(nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(x)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda x: x.sum(), r"a tensor of shape \(\)"),
        (lambda x: x[:1], r"a tensor of shape \(1, 3\)"),
        (lambda x: {"logits": x}, "a dict"),
        (lambda _: (), r"a tuple"),
    ],
)
def test_a_trunk_that_gives_no_features_is_refused(what: Any, said: str):
    with pytest.raises(ModelError, match=f"found: {said}"):
        features_of(Gives(what), torch.ones(4, 3), rows=4)


def test_several_tensors_are_several_features():
    one, two = features_of(Gives(lambda x: (x, x[:, 0])), torch.ones(5, 3), rows=2)
    assert (one.shape, two.shape) == ((5, 3), (5,))


def test_no_inputs_are_refused():
    with pytest.raises(DataError, match="there are no inputs"):
        features_of(nn.Identity(), torch.zeros(0, 3))
    with pytest.raises(DataError, match="rows=0 is too small"):
        features_of(nn.Identity(), torch.zeros(1, 3), rows=0)
