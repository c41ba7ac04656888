"""Features of several tasks: computed once a view, proven, kept or removed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from frostline.errors import ModelError
from frostline.fast import FeatureCache
from frostline.finetune import FinetuneConfig
from frostline.finetune.config import ConfigError
from frostline.finetune.image_folder import ImageDataset, transforms_for
from frostline.finetune.tasks_config import TasksConfig
from frostline.finetune.tasks_features import features_for
from frostline.state.snapshot import snapshot

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::frostline.errors.TorchvisionWithoutOperators"),
]


class Trunk(nn.Module):
    """Convolution, norm, pooling; and on request what mixes samples."""

    def __init__(self, *, mixes: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.mixes = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), mixes

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).mean((2, 3))
        return x - x.mean(0) if self.mixes else x


@pytest.fixture
def images(tmp_path: Path) -> tuple[ImageDataset, ImageDataset]:
    samples = []
    for number in range(7):
        path = tmp_path / f"{number}.png"
        Image.linear_gradient("L").resize((16, 16)).rotate(20 * number).convert("RGB").save(path)
        samples.append((path, 0))
    plain, augmented = (
        ImageDataset(samples, transforms_for(12, (0.5,) * 3, (0.5,) * 3, train=train)) for train in (False, True)
    )
    return plain, augmented


def config(**settings: Any) -> TasksConfig:
    plain = FinetuneConfig(data="photos", model="m", workers=0, device="cpu", epochs=4)
    return TasksConfig({"a": "a.csv"}, replace(plain, **settings))


def made(images, tmp_path, recorder, trunk: nn.Module | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    return features_for(trunk or Trunk(), *images, config(**settings), tmp_path / "run", recorder)


def test_kept_or_in_memory_features_are_the_same(images, tmp_path, recorder) -> None:
    kept = made(images, tmp_path, recorder)
    memory = made(images, tmp_path, recorder, use_cache=False)
    assert isinstance(kept.train, FeatureCache)
    assert torch.equal(kept.train.batch(range(7))[0][0], memory.train[0])
    assert kept.val is None
    assert memory.folder is None
    assert any("features of 7 samples" in line for line in recorder.said)


def test_the_trunk_is_left_as_it_was(images, tmp_path, recorder) -> None:
    trunk = Trunk().train()
    before = snapshot(trunk)
    made(images, tmp_path, recorder, trunk)
    assert not before.diff(trunk)


def test_views_are_augmented_and_validation_is_not(images, tmp_path, recorder) -> None:
    features = made(images, tmp_path, recorder, views=3)
    assert (features.train.views, features.val.views) == (3, 1)
    one, two = (features.train.batch(range(7), view)[0][0] for view in (0, 1))
    (plain,) = features.val.batch(range(7))[0]
    assert not torch.equal(one, two)
    assert torch.equal(plain, made(images, tmp_path, recorder, use_cache=False).train[0])
    with pytest.raises(ConfigError, match="--no-cache with --views and --task"):
        made(images, tmp_path, recorder, views=3, use_cache=False)


def test_features_of_the_run_are_removed_and_those_of_a_folder_stay(images, tmp_path, recorder) -> None:
    own = made(images, tmp_path, recorder)
    assert (tmp_path / "run" / "features").is_dir()
    own.discard()
    assert not (tmp_path / "run" / "features").exists()
    made(images, tmp_path, recorder, cache=str(tmp_path / "kept")).discard()
    assert (tmp_path / "kept" / "val").is_dir()


def test_a_trunk_that_mixes_samples_has_no_features_to_share(images, tmp_path, recorder) -> None:
    with pytest.raises(ModelError, match="no features of its own in this trunk"):
        made(images, tmp_path, recorder, Trunk(mixes=True))
