from __future__ import annotations

import pytest
import torch

from frostline.errors import ModelError
from frostline.runs.device import pick_device


def test_auto_is_the_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ModelError, match="--device cuda:2: not available here"):
        pick_device("cuda:2")


def test_auto_is_the_processor_where_there_is_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for name in ("cuda", "mps", "cpu:0", "cuda:"):
        with pytest.raises(ModelError, match=r"not available here\.\n  fix: one of auto, cpu$"):
            pick_device(name)


@pytest.mark.parametrize("name", ["gpu", "gpu:0", ""])
def test_what_is_no_device_is_not_said_to_be_missing_here(name):
    with pytest.raises(ModelError, match=rf"--device {name}: there is no device '{name[:3]}'\.\n  fix: one of"):
        pick_device(name)
