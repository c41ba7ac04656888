"""One trunk and named heads: what runs, what it is called, and which names it cannot take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from frostline.errors import ModelError
from frostline.tasks import TaskModel


def test_one_task_gives_its_logits_and_none_gives_all(two_heads: TaskModel):
    two_heads.eval()
    inputs = torch.randn(4, 6)
    features = two_heads.trunk(inputs)
    every = two_heads(inputs)
    assert list(every) == ["old", "new"]
    for name, head in (("old", two_heads.heads["old"]), ("new", two_heads.heads["new"])):
        assert torch.equal(every[name], head(features))
        assert torch.equal(two_heads(inputs, name), every[name])


def test_the_trunk_runs_once_for_all_heads():
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    model = TaskModel(Counting(), {"a": nn.Linear(2, 2), "b": nn.Linear(2, 3)})
    model(torch.zeros(1, 2))
    assert model.trunk.calls == 1


def test_trunk_and_heads_are_the_very_modules_under_plain_paths():
    trunk, head = nn.Linear(4, 3), nn.Linear(3, 2)
    model = TaskModel(trunk, {"digit": head})
    assert model.trunk is trunk
    assert model.heads["digit"] is head
    assert list(model.state_dict()) == ["trunk.weight", "trunk.bias", "heads.digit.weight", "heads.digit.bias"]


def test_an_unknown_task_is_refused_with_the_heads_there_are(two_heads: TaskModel):
    with pytest.raises(ModelError) as caught:
        two_heads(torch.zeros(2, 6), "parity")
    assert str(caught.value) == "task 'parity': there is no such head.\n  heads: old, new"
    with pytest.raises(ModelError, match="no such head"):
        two_heads.others("parity")
    assert two_heads.others("new") == ["old"]


def test_without_a_head_it_is_refused():
    with pytest.raises(ModelError, match="there is no head"):
        TaskModel(nn.Identity(), {})


@pytest.mark.parametrize("name", ["train", "keys", "training", "pop", "", "a.b"])
def test_a_name_that_cannot_be_a_head_is_refused_by_name(name: str):
    with pytest.raises(ModelError, match=f"a head cannot be named {name!r}"):
        TaskModel(nn.Identity(), {name: nn.Linear(1, 1)})
