"""A prefix gives the bits that the model computes, for a sample in any batch, and the rest trains as before."""

from __future__ import annotations

import pytest
import torch
from fast_nets import Branches, InPlace, Several, Shared, images_net
from torch import nn

import frostline as fl
from frostline.errors import FastError, ShortcutDiffers
from frostline.fast import Prefix, plan
from frostline.state.digest import digest
from frostline.state.snapshot import snapshot

IMAGES = torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(0))
X = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))


def held_images() -> nn.Sequential:
    torch.manual_seed(0)
    model = images_net()
    model(IMAGES)  # statistics that are not those it was built with
    fl.freeze(model, "[0-8]")
    return model.train()


def prefix_of(model: nn.Module, *args: torch.Tensor, rows: int = 4) -> Prefix:
    return plan(model, args, timing=False).prefix(rows=rows)


def half_trained() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
    )
    fl.freeze(model, "0", "1")
    return model.train()


@pytest.mark.parametrize(
    ("make", "held", "inputs"),
    [
        (half_trained, (), (X,)),
        (Branches, ("a", "b"), (X, X.flip(0))),
        (Shared, ("layer",), (X,)),
        (Several, ("trunk",), (X,)),
        (InPlace, ("trunk",), (X,)),
        (held_images, (), (IMAGES,)),
    ],
)
def test_outputs_gradients_and_state_are_those_of_the_plain_model(make, held, inputs) -> None:
    torch.manual_seed(0)
    model = make()
    if held:
        fl.freeze(model, *held)
    model.train()
    prefix = prefix_of(model, *inputs, rows=len(inputs[0]))
    start = snapshot(model, values=True)

    def step(outputs) -> tuple[list[torch.Tensor], object]:
        outputs.square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad(set_to_none=True)
        return [outputs.detach(), *gradients], snapshot(model)

    torch.manual_seed(1)
    plain, after = step(model(*inputs))
    start.restore(model)
    features = prefix(*inputs)
    kept = [digest(each) for each in features]
    torch.manual_seed(1)
    ours, after_ours = step(prefix.rest(features))
    assert [digest(each) for each in ours] == [digest(each) for each in plain]
    assert len(ours) > 1
    assert after == after_ours
    # What the rest writes into is a copy.
    assert [digest(each) for each in features] == kept


def test_features_are_the_same_bits_in_every_batch() -> None:
    prefix = prefix_of(held_images(), IMAGES)
    (together,) = prefix(IMAGES)
    for rows in ([3], [6, 0], [2, 2, 2, 2, 2], list(range(6, -1, -1))):
        (apart,) = prefix(IMAGES[rows])
        assert torch.equal(apart, together[rows])
    assert not together.requires_grad
    assert prefix(IMAGES[:1])[0].shape == (1, 32)


def test_the_model_is_as_before_and_no_random_number_is_drawn() -> None:
    model = held_images()
    prefix = prefix_of(model, IMAGES)
    before, state = snapshot(model), torch.random.get_rng_state()
    prefix(IMAGES)
    assert not before.diff(model)
    assert torch.equal(state, torch.random.get_rng_state())
    assert prefix.unchanged()


def test_the_prefix_runs_as_it_is_trained_whatever_the_mode_now() -> None:
    """A held part is in eval; one without a mode is run in train mode, and neither follows `eval()`."""
    model = half_trained()
    prefix = prefix_of(model, X)
    (training,) = prefix(X)
    model.eval()
    (evaluating,) = prefix(X)
    assert torch.equal(training, evaluating)


def test_autocast_around_it_does_not_reach_it() -> None:
    prefix = prefix_of(held_images(), IMAGES)
    (plain,) = prefix(IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = prefix(IMAGES)
    assert torch.equal(plain, inside)


def test_its_identity_tells_apart_weights_settings_and_code() -> None:
    model = held_images()
    one = prefix_of(model, IMAGES).identity
    assert prefix_of(model, IMAGES).identity == one
    model[1].eps = 1e-3  # in no tensor, and in no key of the state dict
    two = prefix_of(model, IMAGES).identity
    assert {name for name in one if one[name] != two[name]} == {"computation"}
    with torch.no_grad():
        model[0].weight[0] += 1
    three = prefix_of(model, IMAGES)
    assert {name for name in two if two[name] != three.identity[name]} == {"weights", "computation"}
    assert three.entries.keys() == prefix_of(model, IMAGES).entries.keys()


def test_it_knows_when_its_weights_have_moved() -> None:
    model = held_images()
    prefix = prefix_of(model, IMAGES)
    with torch.no_grad():
        model[1].running_mean += 1
    assert not prefix.unchanged()


def test_check_compares_with_the_model_itself() -> None:
    prefix = prefix_of(held_images(), IMAGES)
    assert prefix.check(IMAGES) == (0.0,)


def test_check_bites_when_a_sample_depends_on_its_place() -> None:
    class Placed(nn.Module):
        place = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(len(x)).view(-1, 1) * 1e-9 if self.place else x + 0.0

    model = nn.Sequential(nn.Linear(4, 4), Placed(), nn.Linear(4, 2)).double()
    fl.freeze(model, "0")
    prefix = plan(model, X.double(), timing=False).prefix(rows=4)
    assert prefix.check(X.double()) == (0.0,)
    Placed.place = True  # less than the rounding that looking allows for, and not equal to the bit
    prefix = plan(model, X.double(), timing=False).prefix(rows=4)
    with pytest.raises(ShortcutDiffers, match="another place in the batch"):
        prefix.check(X.double())


def test_check_bites_when_a_variant_differs() -> None:
    prefix = plan(held_images(), IMAGES, timing=False).prefix("folded", rows=4)
    (difference,) = prefix.check(IMAGES)
    assert 0 < difference < 1e-5
    with pytest.raises(ShortcutDiffers, match="folded differs from the plain prefix"):
        prefix.check(IMAGES, tolerance=difference / 2)


def test_wrong_features_are_refused() -> None:
    prefix = prefix_of(held_images(), IMAGES)
    with pytest.raises(FastError, match="2 tensors of features, expected 1"):
        prefix.rest((torch.zeros(2, 32), torch.zeros(2)))
    with pytest.raises(FastError, match=r"shape \(2, 31\) for 8"):
        prefix.rest((torch.zeros(2, 31),))


def test_arguments_that_the_model_was_not_cut_with_are_refused() -> None:
    prefix = prefix_of(held_images(), IMAGES)
    with pytest.raises(FastError, match="2 arguments, the model was cut with 1"):
        prefix(IMAGES, IMAGES)


def test_a_model_that_takes_another_way_is_not_silently_wrong() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.h, self.way = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2), "a"

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(self.a(x) if self.way == "a" else self.b(x))

    model = Branching()
    fl.freeze(model, "a", "b")
    prefix = prefix_of(model, X)
    model.way = "b"
    with pytest.raises(FastError, match="'a' was not called"):
        prefix(X)


def test_the_rest_runs_through_a_wrapper() -> None:
    model = half_trained()
    prefix = prefix_of(model, X)
    features = prefix(X)
    calls: list[int] = []

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *args: torch.Tensor) -> torch.Tensor:
            calls.append(len(args[0]))
            return self.module(*args)

    model.eval()
    assert torch.equal(prefix.rest(features, through=Wrapper(model)), prefix.rest(features))
    assert calls == [7]


def test_rows_have_to_be_some() -> None:
    with pytest.raises(FastError, match="rows=0"):
        prefix_of(held_images(), IMAGES, rows=0)


def test_the_reprs_are_a_line():
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    fl.freeze(model, "0")
    planned = plan(model, torch.ones(2, 4))
    assert repr(planned) == str(planned).splitlines()[0]
    expected = "frozen prefix of Sequential up to 1 (3,) float32; plain, 4 rows at a time"
    assert repr(planned.prefix(rows=4)) == expected
