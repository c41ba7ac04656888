"""Statistics that lie in the buffers for the time of a block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from frostline.norms.laid_in import statistics_in_place


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    net[1].running_mean.normal_()
    return net


def test_statistics_in_place_come_back_on_an_error(model):
    before = (model[1].running_mean, model[1].running_mean.clone())
    with pytest.raises(KeyError), statistics_in_place(model, {"1": (torch.zeros(8), torch.ones(8))}):
        assert not model[1].running_mean.any()
        raise KeyError
    assert model[1].running_mean is before[0]
    assert torch.equal(*before)
