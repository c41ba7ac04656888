"""Views of a dataset: what a sample is under each of them depends on nothing else."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

from frostline.errors import CacheError
from frostline.fast.views import ViewedSamples, preprocessing_key, split, views_refused

DRAWS = {
    "torch": lambda: torch.rand(()),
    "numpy": lambda: torch.tensor(np.random.rand()),
    "python": lambda: torch.tensor(random.random()),
    "gauss": lambda: torch.tensor(np.random.randn()),
}


class Drawing:
    def __init__(self, draw: Any, count: int = 5) -> None:
        self.draw, self.count = draw, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.draw()


class Epochs(Drawing):
    epoch = 7

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, self.epoch])


def read(samples: ViewedSamples, index: int, view: int) -> Any:
    with samples.reading():
        return samples.read(index, view).input.tolist()


@pytest.mark.parametrize("which", DRAWS)
def test_what_draws_from_a_generator_is_unseeded_and_reproducible(which) -> None:
    samples = ViewedSamples(Drawing(DRAWS[which]), seed=3)
    assert samples.probe() == "unseeded"
    values = {(index, view): read(samples, index, view) for index in range(5) for view in range(3)}
    assert len(set(values.values())) == 15
    DRAWS[which]()
    again = ViewedSamples(Drawing(DRAWS[which]), seed=3)
    assert {at: read(again, *at) for at in reversed(values)} == values


@pytest.mark.parametrize("which", DRAWS)
def test_generators_are_as_before(which) -> None:
    np.random.seed(0)
    np.random.randn()  # numpy then holds a second draw back
    torch.manual_seed(0)
    random.seed(0)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    samples = ViewedSamples(Drawing(DRAWS[which]))
    samples.probe()
    read(samples, 0, 0)
    assert torch.get_rng_state().equal(states[0])
    assert repr(np.random.get_state()) == repr(states[1])
    assert random.getstate() == states[2]
    with pytest.raises(ZeroDivisionError), samples.reading():
        samples.read(1, 1)
        raise ZeroDivisionError
    assert torch.get_rng_state().equal(states[0])


def test_a_draw_is_noticed_where_it_changes_nothing_and_in_one_sample_of_those_asked() -> None:
    def rarely() -> Tensor:
        return torch.zeros(()) if torch.rand(()) >= 0 else torch.ones(())

    assert ViewedSamples(Drawing(rarely)).probe() == "unseeded"

    class Last(Drawing):
        def __getitem__(self, index: int) -> Tensor:
            return torch.rand(()) if index == 4 else torch.zeros(())

    assert ViewedSamples(Last(None)).probe() == "unseeded"
    assert ViewedSamples(Drawing(lambda: torch.zeros(()))).probe() == "none"


def test_epochs_are_views_and_come_back() -> None:
    data = Epochs(None)
    for dataset in (data, Subset(data, [3, 1])):
        samples = ViewedSamples(dataset)
        assert samples.probe() == "epochs"
        assert [read(samples, 1, view)[1] for view in range(3)] == [1, 2, 3]
        assert data.epoch == 7


def test_what_is_another_one_each_time_is_refused() -> None:
    counter = iter(range(100))
    with pytest.raises(CacheError, match="sample 0 is another one at each reading"):
        ViewedSamples(Drawing(lambda: torch.tensor(next(counter)))).probe()


def test_what_has_no_samples_is_refused() -> None:
    with pytest.raises(CacheError, match="has no length"):
        ViewedSamples(iter([1]))
    with pytest.raises(CacheError, match="is empty"):
        ViewedSamples([])


@pytest.mark.parametrize(
    ("randomness", "views", "refused"),
    [
        ("none", 1, ""),
        ("none", 2, "would be the same"),
        ("epochs", 1, ""),
        ("unseeded", 1, "freeze"),
        ("unseeded", 2, ""),
    ],
)
def test_which_views_make_sense(randomness, views, refused) -> None:
    assert refused in views_refused(randomness, views)
    assert bool(refused) == bool(views_refused(randomness, views))


def test_a_sample_is_two_things_or_the_input() -> None:
    assert split([1, 2]).target == 2
    assert split((1, 2, 3)).input == (1, 2, 3)
    assert split({"a": 1, "b": 2}).target is None


def test_a_dataset_may_say_how_it_prepares_and_what_samples_are_called() -> None:
    class Told(Drawing):
        preprocessing_key = "crop"

        def sample_key(self, index: int) -> int:
            return index * 10

    assert (preprocessing_key(Told(None)), preprocessing_key(Drawing(None))) == ("crop", None)
    samples = ViewedSamples(Told(None))
    assert (samples.keyed, samples.key(3), ViewedSamples(Drawing(None)).keyed) == (True, "30", False)
