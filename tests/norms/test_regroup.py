"""Batches put together into larger ones lose nothing, and never leave a small one at the end."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from frostline.errors import NormsError
from frostline.norms.feed import Feed
from frostline.norms.regroup import Regrouped, samples_of, together


class Pair(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor


@pytest.mark.parametrize("sizes", [[1] * 10, [4, 4, 1], [3], [8, 1, 1, 1], [2, 9, 2]])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_groups_have_the_size_that_was_asked_for_and_hold_everything_in_order(sizes, size):
    x = torch.arange(sum(sizes)).view(-1, 1)
    groups = list(Regrouped(Feed(list(x.split(sizes))), size=size))
    assert torch.equal(torch.cat(groups), x)
    assert all(len(group) >= min(size, len(x)) for group in groups)


def test_all_parts_of_a_batch_go_along():
    for make in (tuple, list, lambda pair: Pair(*pair)):
        batches = [make([torch.full((2, 1), i), torch.tensor([i, i])]) for i in range(3)]
        whole = together(batches)
        assert type(whole) is type(batches[0])
        assert whole[0].flatten().tolist() == whole[1].tolist() == [0, 0, 1, 1, 2, 2]
    named = together([{"pixels": torch.ones(2, 1), "name": ["a", "b"]}, {"pixels": torch.ones(1, 1), "name": ["c"]}])
    assert named["pixels"].shape == (3, 1)
    assert named["name"] == ["a", "b", "c"]
    assert samples_of(named) == 3


@pytest.mark.parametrize(
    "batches",
    [
        [torch.ones(2, 3), torch.ones(2, 4)],
        [(torch.ones(2, 3), torch.ones(())), (torch.ones(2, 3), torch.ones(()))],
        [{"a": torch.ones(1)}, {"b": torch.ones(1)}],
        # One tensor for each sample, or one for each view? Put together the wrong way they would train on nonsense.
        [([torch.ones(3, 4), torch.ones(3, 4)], 1), ([torch.ones(3, 4), torch.ones(3, 4)], 1)],
    ],
)
def test_what_cannot_be_put_together_is_refused(batches):
    with pytest.raises(NormsError, match="cannot be put together"):
        together(batches)


def test_a_limit_needs_batches_that_can_be_counted():
    unknown = [object(), object()]
    assert list(Regrouped(Feed(unknown))) == unknown
    for options in ({"size": 4}, {"most": 4}):
        with pytest.raises(NormsError, match="it is not known how many samples it has"):
            list(Regrouped(Feed(unknown), **options))


def test_batches_behind_the_limit_are_not_even_loaded():
    loaded = []

    def batches():
        for i in range(10):
            loaded.append(i)
            yield torch.ones(4, 1)

    assert sum(map(len, Regrouped(Feed(batches()), most=10))) == 12
    assert loaded == [0, 1, 2]
