"""ResNet-20 as in the checkpoint of akamaster/pytorch_resnet_cifar10 and where that file lies, and a small model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESNET20 = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "checkpoints" / "resnet20-12fca82f.th"


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        # Option A: subsample, and pad the channels with zeros.
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet20(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


@pytest.fixture
def resnet20() -> Callable[..., nn.Module]:
    def build(**options: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return ResNet20(**options)

    return build


@pytest.fixture
def resnet20_file() -> Path:
    if not RESNET20.is_file():
        pytest.skip(f"REAL DATA ABSENT: {RESNET20} is not there, so a real legacy checkpoint goes untested")
    return RESNET20


class SmallNet(nn.Module):
    """A model to which the checkpoint that :func:`small` writes leads only by every operation there is."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4, eps=1e-3)
        self.position = nn.Parameter(torch.zeros(1, 10, 4))
        self.scale = nn.Parameter(torch.zeros(()))
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)
        self.half = nn.Linear(4, 2)
        self.head = nn.Linear(4, 3)
        self.fresh = nn.Linear(4, 1)


@pytest.fixture
def small(tmp_path: Path) -> tuple[nn.Module, Path, dict[str, Any]]:
    """A model, a checkpoint, and the arguments for :func:`plan_load` under which the one fits the other."""
    random = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    state = {
        "module.conv.weight": values(4, 3, 3, 3),
        "module.conv.bias": values(4),
        "module.norm.weight": values(4),
        "module.norm.bias": values(4),
        "module.norm.running_mean": values(4),
        "module.norm.running_var": values(4).abs(),
        "module.position": values(1, 5, 4),
        "module.scale": values(1),
        "module.both.weight": values(4, 4),
        "module.both.bias": values(4),
        "module.half.weight": values(2, 4).half(),
        "module.half.bias": values(2).double(),
        "module.head.weight": values(3, 4, 1, 1),
        "module.head.bias": values(3),
        "module.old.weight": values(7),
    }
    path = tmp_path / "small.pt"
    torch.save({"state_dict": state, "epoch": 3}, path)
    arguments: dict[str, Any] = {
        "rename": {"conv": "stem", "both": ["left", "right"]},
        "keep": "fresh",
        "drop": "old",
        "adapt": {
            "stem": "input-channels",
            "position": "position-embedding",
            "scale": "scalar",
            "head": "conv-linear",
            "half": "narrow",
        },
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SmallNet(), path, arguments
