"""What shortcuts would save."""

from __future__ import annotations

import torch
from fast_nets import images_net
from torch import nn

import frostline as fl
from frostline.fast.savings import Saving, time_savings, variants_for


def test_only_variants_that_could_bring_something_are_timed() -> None:
    images, words = images_net(), nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, 2))
    fl.freeze(images, "[0-8]")
    fl.freeze(words, "0")
    plan = fl.fast.plan(images, torch.randn(3, 3, 6, 6), timing=False)
    assert variants_for(images, plan.prefix()) == [("folded",), ("channels_last",), ("folded", "channels_last")]
    plan = fl.fast.plan(words, torch.tensor([[1, 2], [3, 4]]), timing=False)
    assert variants_for(words, plan.prefix()) == []
    rows = time_savings(words, plan.prefix, (torch.tensor([[1, 2], [3, 4]]),), {})
    assert [row.name for row in rows] == ["plain", "cached"]


def test_a_variant_that_differs_too_much_says_why(monkeypatch) -> None:
    from frostline.fast.variants import Variant

    model = images_net()
    fl.freeze(model, "[0-8]")
    images = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    plan = fl.fast.plan(model, images, timing=False)
    monkeypatch.setattr(Variant, "tolerance", lambda *_: 0.0)
    rows = {row.name: row for row in time_savings(model, plan.prefix, (images,), {})}
    assert rows["folded"].step_seconds is None
    assert "differs from the plain prefix" in rows["folded"].note


def test_how_many_times_as_fast() -> None:
    plain, cached = Saving("plain", 3.0, 4.0, 0.0), Saving("cached", 0.0, 1.0, 0.0)
    assert cached.times_as_fast(plain) == 4.0
    assert Saving("folded", None, None, None, "no").times_as_fast(plain) is None
