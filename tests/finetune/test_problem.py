"""What of the trunk is held, asked before anything is written."""

import pytest
from torch import nn

from frostline.errors import NothingSelected
from frostline.finetune.problem import held_part


@pytest.fixture
def trunk() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.ReLU())


def test_all_of_it_unless_said(trunk: nn.Module) -> None:
    assert held_part(trunk, ()) == ("*",)
    assert held_part(trunk, ("0", "!0.bias")) == ("0", "!0.bias")


def test_buffers_alone_are_something_to_hold(trunk: nn.Module) -> None:
    assert held_part(trunk, ("1",)) == ("1",)


def test_a_part_without_state_is_refused(trunk: nn.Module) -> None:
    with pytest.raises(NothingSelected, match=r"--freeze 2: what it matches .* has no parameters and no buffers"):
        held_part(trunk, ("2",))


def test_a_part_that_is_not_there_is_refused(trunk: nn.Module) -> None:
    with pytest.raises(NothingSelected, match="nearest names"):
        held_part(trunk, ("3",))
