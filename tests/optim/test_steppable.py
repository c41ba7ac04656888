"""What an optimizer has to be for something that follows its steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.errors import ModelError
from frostline.optim.steppable import not_held, refuse_parallel, the_one

SAID = {"hooks": "_optimizer_step_pre_hooks", "several": "one of them", "lbfgs": "so it will not do"}


def test_the_caller_says_what_is_wrong() -> None:
    layer = nn.Linear(2, 2)
    sgd, lbfgs = torch.optim.SGD(layer.parameters(), lr=0.1), torch.optim.LBFGS(layer.parameters())
    assert the_one(sgd, "Here", **SAID) is sgd
    with pytest.raises(ModelError, match=r"Here: expected one optimizer, got 2\n  fix: one of them"):
        the_one([sgd, sgd], "Here", **SAID)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="LBFGS moves all its parameters as one vector, so it will not do"):
        the_one(lbfgs, "Here", **SAID)
    with pytest.raises(ModelError, match=r"Here: SGD does not call Optimizer\.__init__"):
        the_one(sgd, "Here", **{**SAID, "hooks": "_hooks_of_a_later_torch"})


def test_what_waits_for_gradients_is_refused_and_other_wrappers_are_not() -> None:
    refuse_parallel(nn.Linear(2, 2), "no")
    refuse_parallel(nn.DataParallel(nn.Linear(2, 2)), "no")
    parallel = object.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(parallel)
    with pytest.raises(ModelError, match=r"^no$"):
        refuse_parallel(parallel, "no")


def test_parameters_that_no_group_holds() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([layer.weight], lr=0.1)
    assert not_held(dict(layer.named_parameters()), optimizer) == ["bias"]
    optimizer.add_param_group({"params": [layer.bias]})
    assert not_held(dict(layer.named_parameters()), optimizer) == []
