"""Variants run on a copy, within what rounding explains."""

from __future__ import annotations

import pytest
import torch
from fast_nets import images_net
from torch import nn

import frostline as fl
from frostline.errors import FastError
from frostline.fast import Variant, plan
from frostline.fast.variants import PLAIN, variant_of
from frostline.state.snapshot import snapshot

IMAGES = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def held_images() -> nn.Sequential:
    torch.manual_seed(0)
    model = images_net()
    model(IMAGES)
    fl.freeze(model, "[0-8]")
    return model.train()


@pytest.mark.parametrize(
    ("words", "autocast"),
    [
        (("folded",), None),
        (("channels_last",), None),
        (("folded", "channels_last"), None),
        (("folded",), torch.bfloat16),
    ],
)
def test_a_variant_is_near_the_plain_prefix_and_leaves_the_model_alone(words, autocast) -> None:
    model = held_images()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before, parameters = snapshot(model), list(model.parameters())
    found = plan(model, IMAGES, timing=False)
    variant = found.prefix(*words, autocast=autocast, rows=4)
    (difference,) = variant.check(IMAGES)
    assert difference <= variant.variant.tolerance(model, found._cut)
    assert variant(IMAGES)[0].dtype == torch.float32
    assert not before.diff(model)
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert optimizer.param_groups[0]["params"] == parameters
    assert all(hasattr(m, "weight") for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert variant.identity["variant"] == str(variant.variant)


def test_folding_really_folds() -> None:
    found = plan(held_images(), IMAGES, timing=False)
    folded = found.prefix("folded", rows=4)
    assert not [m for m in folded._running.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m for m in found.prefix(rows=4)._running.modules() if isinstance(m, nn.BatchNorm2d)]


def test_autocast_really_narrows() -> None:
    found = plan(held_images(), IMAGES, timing=False)
    (narrow,) = found.prefix(autocast=torch.bfloat16, rows=4)(IMAGES)
    (plain,) = found.prefix(rows=4)(IMAGES)
    assert not torch.allclose(narrow, plain, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")  # torch's own, when inductor is imported
def test_compiled() -> None:
    found = plan(held_images(), IMAGES, timing=False)
    compiled = found.prefix("compiled", rows=4)
    assert compiled.check(IMAGES)[0] < 1e-5


def test_there_may_be_nothing_to_fold() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(model, "0")
    with pytest.raises(FastError, match="no batch norm to fold in 0"):
        plan(model, torch.randn(3, 4), timing=False).prefix("folded")


@pytest.mark.parametrize(("words", "autocast"), [(("fold",), None), ((), torch.int8)])
def test_unknown_variants(words, autocast) -> None:
    with pytest.raises(FastError, match=r"no such (variant|type)"):
        variant_of(words, autocast)


def test_a_variant_says_what_it_is() -> None:
    assert str(PLAIN) == "plain"
    assert str(Variant(folded=True, channels_last=True, autocast=torch.float16)) == "folded, channels_last, float16"
