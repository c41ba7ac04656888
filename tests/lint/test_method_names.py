"""Names of methods that modules, optimizers and schedulers have."""

from __future__ import annotations

import pytest
import torch

from frostline.lint.method_names import DISTINCTIVE, METHODS, meant

CLASSES = {
    "module": (torch.nn.Module, torch.nn.ModuleList, torch.nn.parallel.DistributedDataParallel),
    "optimizer": (torch.optim.Optimizer, torch.optim.SGD, torch.optim.LBFGS),
    "scheduler": (torch.optim.lr_scheduler.LRScheduler, torch.optim.lr_scheduler.ReduceLROnPlateau),
}


@pytest.mark.parametrize("kind", METHODS)
def test_torch_has_each_of_them(kind):
    assert [name for name in METHODS[kind] if not hasattr(CLASSES[kind][0], name)] == []


@pytest.mark.parametrize("kind", METHODS)
def test_nothing_that_torch_has_is_a_slip(kind):
    assert [name for each in CLASSES[kind] for name in dir(each) if meant(name, kind)] == []


def test_distinctive_ones_are_among_them():
    assert {name for names in METHODS.values() for name in names} >= DISTINCTIVE


@pytest.mark.parametrize(
    ("name", "kind", "methods"),
    [
        ("name_parameters", "module", ["named_parameters"]),
        ("parameter", "module", ["parameters"]),
        ("named_params", "module", ["named_parameters"]),
        ("zero_grads", "optimizer", ["zero_grad"]),
        ("zero_gradients", "optimizer", ["zero_grad"]),
        ("named_params", "optimizer", []),
        ("load_state_dicts", "scheduler", ["load_state_dict"]),
        ("aprameters", "module", []),
        ("forward_features", "module", []),
        ("parameters", "loader", []),
    ],
)
def test_what_was_meant(name, kind, methods):
    assert meant(name, kind) == methods
