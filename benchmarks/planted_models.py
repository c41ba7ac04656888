"""The architectures of the nets that faults are planted in."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.compat import import_torchvision

CIFAR_CLASSES = 10


class Block(nn.Module):
    """Two convolutions and a shortcut of option A: subsample, and pad the channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet20(nn.Module):
    """As in the checkpoint of akamaster/pytorch_resnet_cifar10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.linear = nn.Linear(64, CIFAR_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(functional.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


class DigitsMLP(nn.Sequential):
    """Six hidden layers, each with batch norm (norm-facts, section 3)."""

    def __init__(self, width: int = 128, depth: int = 6) -> None:
        blocks = [
            nn.Sequential(nn.Linear(64 if i == 0 else width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
            for i in range(depth)
        ]
        super().__init__(nn.Flatten(), *blocks, nn.Linear(width, 10))


def conv_block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, rectifier."""
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class ConvNet(nn.Module):
    """Convolutions, mean over the positions, one linear layer.

    Given a pair of images, as a siamese net is, it calls its trunk twice and returns the logits of both, one below the
    other.
    """

    def __init__(self, channels: int, classes: int, widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for width, stride in widths:
            blocks.append(conv_block(channels, width, stride))
            channels = width
        self.trunk = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor | Sequence[Tensor]) -> Tensor:
        if isinstance(x, Tensor):
            return self.head(self.trunk(x).mean((2, 3)))
        return torch.cat([self(view) for view in x])


def timm_net() -> nn.Module:
    """A small EfficientNet of timm with its ``BatchNormAct2d``; the stem keeps the resolution of small images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm

        model = timm.create_model("test_efficientnet", pretrained=False, num_classes=CIFAR_CLASSES)
    model.conv_stem.stride = (1, 1)
    return model
