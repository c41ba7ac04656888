"""Running statistics against those of real batches: a wrong mapping shows, a right one does not."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from renamed_resnet20 import Renamed
from torch import Tensor, nn

from frostline.checkpoint import plan_load, probe_statistics
from frostline.errors import NoStatistics
from frostline.state import snapshot

CIFAR10 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cifar10" / "test"


@pytest.fixture(scope="module")
def images() -> Tensor:
    if not CIFAR10.is_dir():
        pytest.skip(f"REAL DATA ABSENT: {CIFAR10} is not there, so the probe goes untested on real images")
    files = sorted(CIFAR10.glob("*/*.jpg"))[::25]
    pixels = np.stack([np.array(Image.open(file).convert("RGB")) for file in files])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(pixels).float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def exchange(block: nn.Module) -> None:
    a, b = (copy.deepcopy(norm.state_dict()) for norm in (block.norm_a, block.norm_b))
    block.norm_a.load_state_dict(b)
    block.norm_b.load_state_dict(a)


@pytest.mark.real_data
def test_the_right_mapping_of_the_real_checkpoint_and_wrong_ones(images: Tensor, resnet20_file: Path):
    model = Renamed()
    plan_load(model, resnet20_file).apply()
    right = probe_statistics(model, [images])
    assert right.plausible
    assert right.divergence < 0.05
    assert len(right.layers) == 19

    blocks = [block for stage in model.stages for block in stage]
    exchange(blocks[4])
    one = probe_statistics(model, [images])
    assert not one.plausible  # a single exchange, which the median alone would hardly show
    assert one.layers[0].path.startswith("stages.1")
    for block in [*blocks[:4], *blocks[5:]]:
        exchange(block)
    wrong = probe_statistics(model, [images])
    assert wrong.divergence > 20
    assert "a wrong mapping, or data of another kind" in str(wrong)


@pytest.mark.real_data
def test_a_plan_is_probed_on_a_copy(images: Tensor, resnet20_file: Path):
    model = Renamed(order=("conv_a", "norm_b", "conv_b", "norm_a"))
    before = snapshot(model)
    found = plan_load(model, resnet20_file, accept_ambiguous=True).probe([images])
    assert not before.diff(model)
    assert found.plausible


def test_the_divergence_is_that_of_two_normal_distributions():
    norm = nn.BatchNorm1d(1, eps=0.0)
    norm.running_mean.fill_(3.0)
    norm.running_var.fill_(4.0)
    batch = torch.tensor([[-1.0], [1.0]])  # mean 0, variance 1
    expected = (1 / 4 + 9 / 4 - 1 - np.log(1 / 4)) / 2
    assert probe_statistics(nn.Sequential(norm), [batch]).divergence == pytest.approx(expected, abs=1e-12)


def test_nothing_is_changed_and_layers_without_statistics_are_no_help():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = snapshot(model)
    probe_statistics(model, [torch.randn(8, 2)])
    assert not before.diff(model)
    with pytest.raises(NoStatistics):
        probe_statistics(nn.Sequential(nn.LayerNorm(2)), [torch.randn(8, 2)])
