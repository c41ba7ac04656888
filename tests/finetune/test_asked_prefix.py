"""The prefix that settings ask for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import ShortcutDiffers
from frostline.fast import Prefix
from frostline.finetune import FinetuneConfig
from frostline.finetune.asked_prefix import asked_prefix

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def found():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    fl.freeze(model, "[0-2]")
    return fl.fast.plan(model, X, timing=False)


@pytest.mark.parametrize(
    ("words", "variant"), [((), "plain"), (("folded",), "folded"), (("folded", "bfloat16"), "folded, bfloat16")]
)
def test_the_way_that_was_asked_for(words, variant) -> None:
    prefix = asked_prefix(found(), X, FinetuneConfig(prefix=words), rows=2)
    assert (str(prefix.variant), prefix.rows) == (variant, 2)


def test_it_is_proven(monkeypatch) -> None:
    def differs(*_) -> None:
        raise ShortcutDiffers("no")

    monkeypatch.setattr(Prefix, "check", differs)
    with pytest.raises(ShortcutDiffers):
        asked_prefix(found(), X, FinetuneConfig(), rows=2)
