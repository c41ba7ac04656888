"""What cannot be watched is refused before anything is attached."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.fast.watchable import check_setting, refuse_missing, refuse_parallel, the_stepping_one


def test_a_setting_that_makes_no_sense():
    with pytest.raises(ModelError, match=r"Converged\(window=0\): that makes no sense\n  fix: 1 or more"):
        check_setting("window", 0, False, "1 or more")


def test_lbfgs_moves_all_as_one():
    with pytest.raises(ModelError, match="LBFGS"):
        the_stepping_one(torch.optim.LBFGS(nn.Linear(1, 1).parameters()))


def test_several_optimizers():
    several = [torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1) for _ in range(2)]
    with pytest.raises(ModelError, match="expected one optimizer, got 2"):
        the_stepping_one(several)


def test_an_optimizer_without_hooks():
    class Bare(torch.optim.Optimizer):
        def __init__(self):
            pass

    with pytest.raises(ModelError, match=r"Bare does not call Optimizer\.__init__"):
        the_stepping_one(Bare())


def test_several_devices(monkeypatch):
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    with pytest.raises(ModelError, match="watch the module inside"):
        refuse_parallel(wrapped)
    refuse_parallel(nn.Linear(1, 1))


def test_what_the_optimizer_does_not_hold_has_not_converged():
    first, second = nn.Linear(1, 1), nn.Linear(1, 1)
    layers = {0: dict(first.named_parameters()), 1: dict(second.named_parameters())}
    refuse_missing(layers, torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.1))
    with pytest.raises(ModelError, match="does not hold what it is to train: weight, bias"):
        refuse_missing(layers, torch.optim.SGD(first.parameters(), lr=0.1))
