"""Where a model is cut: what is in the prefix, what crosses, and why the rest is not in it."""

from __future__ import annotations

import random

import pytest
import torch
from fast_nets import (
    Branches,
    Centred,
    Counting,
    InPlace,
    Noisy,
    Prompted,
    Several,
    Shared,
    Writing,
    images_net,
)
from torch import Tensor, nn

import frostline as fl
from frostline.errors import FastError
from frostline.fast.cut import Cut, Shape, find_cut
from frostline.state.snapshot import snapshot

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def cut_of(model: nn.Module, *args: object, **kwargs: object) -> Cut:
    return find_cut(model, args, kwargs)


def reasons(cut: Cut) -> dict[str, str]:
    return {row.path: row.reason for row in cut.blocked}


def test_the_front_that_is_held_is_the_prefix() -> None:
    model = images_net()
    fl.freeze(model, "[0-8]")
    cut = cut_of(model, torch.randn(4, 3, 6, 6))
    assert [str(place) for place in cut.places] == ["8 (32,) float32"]
    assert cut.modules == tuple("012345678")
    assert reasons(cut) == {"9": "'9.weight' trains"}
    assert set(cut.entries) == {path for path, t in [*model.named_parameters(), *model.named_buffers()]
                                if not path.startswith("9") and not path.endswith("tracked")}  # fmt: skip


def test_a_batch_norm_that_only_lost_its_gradients_ends_the_prefix() -> None:
    """The twin: `requires_grad=False` alone leaves statistics moving, so nothing behind them is frozen."""
    model = images_net().requires_grad_(False)
    model[9].requires_grad_(True)
    cut = cut_of(model, torch.randn(4, 3, 6, 6))
    assert cut.modules == ("0",)
    found = reasons(cut)
    assert found["1"] == "writes '1.num_batches_tracked' in its forward, being in train mode"
    assert found["4"].startswith("writes '4.")
    assert "draws random numbers" in found["6"]


def test_branches_skips_and_several_inputs() -> None:
    model = Branches()
    fl.freeze(model, "a", "b")
    cut = cut_of(model, X, X)
    assert [place.name for place in cut.places] == ["a", "b", "input:0", "input:1"]
    assert reasons(cut) == {"t": "'t.weight' trains", "h": "'h.weight' trains"}
    named = cut_of(model, X, y=X)
    assert [place.name for place in named.places] == ["a", "b", "input:0", "input:y"]


def test_what_a_prompt_goes_into_is_not_in_the_prefix() -> None:
    model = Prompted()
    fl.freeze(model, "stem", "trunk")
    cut = cut_of(model, X)
    assert (cut.modules, [place.name for place in cut.places]) == (("stem",), ["stem"])
    assert reasons(cut)[""] == "'prompt' trains"


def test_one_layer_called_twice_is_in_it_once() -> None:
    model = Shared()
    fl.freeze(model, "layer")
    cut = cut_of(model, X)
    assert list(cut.given) == [("layer", 0)]
    assert ("layer", 1) not in cut.skipped


def test_what_is_the_same_for_all_samples_is_kept_in_the_cut() -> None:
    model = Several()
    fl.freeze(model, "trunk")
    cut = cut_of(model, X)
    assert [place.name for place in cut.places] == ["trunk[0]"]
    (returned,) = cut.given.values()
    assert isinstance(returned.leaves[0], Shape)
    assert torch.equal(returned.leaves[1], torch.arange(4.0) * 2)
    assert returned.leaves[2] == 0.5


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (Noisy(), "draws random numbers (bernoulli_)"),
        (Counting(), "gives different results for the same input: it draws random numbers, or keeps a state"),
        (Centred(), "gives a sample another result when the others of its batch are others"),
        (Writing(), "writes '1.seen' in its forward"),
        (nn.BatchNorm1d(4, track_running_stats=False), "normalizes with the batch: it keeps no statistics"),
    ],
)
def test_what_is_no_function_of_a_sample_ends_the_prefix(layer: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer, nn.Linear(4, 4), nn.Linear(4, 2))
    for parameter in [*model[0].parameters(), *model[1].parameters(), *model[2].parameters()]:
        parameter.requires_grad_(False)
    cut = cut_of(model, X)
    assert cut.modules == ("0",)
    assert reasons(cut)["1"].startswith(reason)
    # Its own weights are frozen: it is its input that is not.
    assert "2" not in reasons(cut)


def test_random_numbers_of_python_are_found_too() -> None:
    class Shaky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * random.random()

    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), Shaky(), nn.Linear(4, 2))
    assert cut_of(model, X).modules == ("0",)


def test_a_tensor_whose_first_dimension_is_not_the_sample_moves_the_boundary_forward() -> None:
    class Turned(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.t()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.turn, self.h = nn.Linear(4, 4), Turned(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.h(self.turn(self.a(x)).t())

    model = Net()
    fl.freeze(model, "a")
    cut = cut_of(model, X)
    assert [place.name for place in cut.places] == ["a"]
    assert reasons(cut)["turn"].endswith("whose first dimension is not the sample")


def test_what_the_rest_writes_into_is_known() -> None:
    model = InPlace()
    fl.freeze(model, "trunk")
    assert cut_of(model, X).written == {0}
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(plain, "0")
    assert cut_of(plain, X).written == frozenset()


def test_a_model_that_is_frozen_as_a_whole_is_all_prefix() -> None:
    model = nn.Sequential(nn.Linear(4, 2)).requires_grad_(False)
    cut = cut_of(model, X)
    assert (cut.modules, cut.blocked) == (("",), ())


def test_nothing_is_changed_by_looking() -> None:
    model = images_net()
    fl.freeze(model, "[0-8]")
    model[4].train()
    before, state = snapshot(model, values=True), torch.random.get_rng_state()
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    cut_of(model, torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(1)))
    assert not before.diff(model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert [module.__dict__.get("forward") for module in model.modules()] == forwards


def test_one_sample_is_too_few() -> None:
    with pytest.raises(FastError, match="hold 1 samples"):
        cut_of(nn.Linear(4, 2), X[:1])


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [((3, 4), (6, 4), ((0, 4), (1, 0))), ((5, 4), (8, 4), ((2, 4), (1, 0))), ((4,), (4,), ((4,), (0,)))],
)
def test_shapes_follow_the_number_of_samples(one, two, expected) -> None:
    shape = Shape.of(torch.zeros(one), torch.zeros(two), 3)
    assert shape is not None
    assert (shape.fixed, shape.each) == expected
    assert (shape.at(3), shape.at(6)) == (one, two)
    assert shape.by_sample == (one == (3, 4))


def test_shapes_that_do_not_follow() -> None:
    assert Shape.of(torch.zeros(3, 4), torch.zeros(7, 4), 3) is None
    assert Shape.of(torch.zeros(3, 4), torch.zeros(6, 4, 1), 3) is None
