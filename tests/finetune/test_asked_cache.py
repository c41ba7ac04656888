"""Where features go, and what a user of the command is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.errors import CacheMismatch
from frostline.finetune import FinetuneConfig
from frostline.finetune.asked_cache import asked_cache, features_place

DATA = TensorDataset(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6))
CONFIG = FinetuneConfig(workers=0)


def prefix_of(seed: int):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    fl.freeze(model, "0")
    return fl.fast.plan(model, DATA.tensors[0], timing=False).prefix(rows=2)


def test_features_of_a_run_are_its_own_and_those_of_a_folder_are_not() -> None:
    run = Path("run")
    assert features_place(CONFIG, run) == (run / "features", run / "features")
    assert features_place(FinetuneConfig(cache="kept"), run) == (Path("kept"), None)


def test_a_folder_of_another_model_names_the_options_of_the_command(tmp_path: Path) -> None:
    assert asked_cache(tmp_path, prefix_of(0), DATA, CONFIG).fill().computed == 6
    assert asked_cache(tmp_path, prefix_of(0), DATA, CONFIG).fill().reused == 6
    with pytest.raises(CacheMismatch) as caught:
        asked_cache(tmp_path, prefix_of(1), DATA, CONFIG)
    assert str(caught.value).endswith("  fix: another --cache-folder, or --rebuild-cache to replace what is there")
    rebuilt = replace(CONFIG, cache=str(tmp_path), rebuild_cache=True)
    assert asked_cache(tmp_path, prefix_of(1), DATA, rebuilt).fill().computed == 6
