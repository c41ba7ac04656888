"""Rows of shards: mapped, checked once, found while a writer is at work."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from frostline.fast import shelf as module
from frostline.fast.cached_features import CachedFeatures
from frostline.fast.feature_cache import FeatureCache
from frostline.fast.features import Place


class Wide:
    """Many numbers of each sample."""

    rows, identity, entries = 8, {"weights": "0"}, dict[str, str]()

    def __init__(self, width: int) -> None:
        self.width = width
        self.places = [Place("x", (width,), torch.float32)]

    def __call__(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs[:, None].expand(-1, self.width).contiguous(),)


def filled(folder: Path, count: int, width: int, per_shard: int) -> FeatureCache:
    cache = FeatureCache(
        folder, Wide(width), [torch.tensor(float(i)) for i in range(count)], samples_per_shard=per_shard
    )
    cache.fill()
    return cache


def mapped_from(tensor: torch.Tensor) -> str:
    """The file that the memory of a tensor is a map of."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, stop = (int(each, 16) for each in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < stop:
            return line.split()[-1].rpartition("/")[2]
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_shards_are_mapped_and_what_is_read_is_not(tmp_path) -> None:
    cache = filled(tmp_path, 16, 2**16, 8)
    shelf = CachedFeatures.open(tmp_path)._there()
    shard = shelf.shard(shelf.manifest.shards[1])
    assert {mapped_from(tensor) for tensor in shard.tensors.values()} == {"view-000-shard-00001.safetensors"}
    for copy in (cache.batch([9])[0][0], shard.tensors["feature.0.0"].clone()):
        assert "safetensors" not in mapped_from(copy)


@pytest.mark.parametrize("per_shard", [2, 16, 100])
@pytest.mark.parametrize("count", [0, 1, 5, 33, 300])
def test_rows_are_those_asked_for_whichever_way_they_are_copied(per_shard, count, tmp_path) -> None:
    cache = filled(tmp_path, 40, 3, per_shard)
    wanted = torch.randint(40, (count,), generator=torch.Generator().manual_seed(count))
    (features,), _ = cache.batch(wanted)
    assert features.equal(wanted[:, None].expand(-1, 3).float())


def test_a_shard_is_checked_once(tmp_path, monkeypatch) -> None:
    filled(tmp_path, 20, 3, 10)
    opened, real, checked = CachedFeatures.open(tmp_path), module.open_shard, []
    monkeypatch.setattr(module, "open_shard", lambda path, *rest: checked.append(path.name) or real(path, *rest))
    for _ in range(3):
        opened.batch([1, 2])
    assert checked == ["view-000-shard-00000.safetensors"]
    opened.batch(np.arange(20))
    assert len(checked) == 2
