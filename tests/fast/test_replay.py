"""The two parts run by themselves, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from fast_nets import Branches
from torch import nn

import frostline as fl
from frostline.fast.cut import find_cut
from frostline.fast.replay import run_prefix, run_rest

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def counted(model: nn.Module) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path, module in model.named_children():
        original = module.forward

        def forward(*args, _original=original, _path=path):
            counts[_path] = counts.get(_path, 0) + 1
            return _original(*args)

        module.forward = forward
    return counts


def test_each_part_runs_only_its_own_layers() -> None:
    model = Branches()
    fl.freeze(model, "a", "b")
    cut = find_cut(model, (X, X), {})
    counts = counted(model)
    features = run_prefix(model, cut, [X, X])
    assert counts == {"a": 1, "b": 1}
    counts.clear()
    run_rest(model, cut, features)
    assert counts == {"t": 1, "h": 1}


def test_methods_are_taken_out_again_also_when_it_raises() -> None:
    model = Branches()
    fl.freeze(model, "a", "b")
    cut = find_cut(model, (X, X), {})
    with pytest.raises(RuntimeError):
        run_prefix(model, cut, [X[:, :2], X])
    assert not [m for m in model.modules() if "forward" in m.__dict__]
    run_rest(model, cut, (X, X, X, X))
    assert not [m for m in model.modules() if "forward" in m.__dict__]


def test_hooks_of_the_user_see_features_as_they_see_outputs() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    fl.freeze(model, "0")
    model[0].register_forward_hook(lambda _module, _args, output: output * 2)
    cut = find_cut(model, (X,), {})
    assert torch.equal(run_rest(model, cut, run_prefix(model, cut, [X])), model(X))
