"""ResNet-20 under other names: the variants of a table that no renaming tool had solved."""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn import functional

IN_ORDER = ("conv_a", "norm_a", "conv_b", "norm_b")


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, order: tuple[str, ...]) -> None:
        super().__init__()
        parts = {
            "conv_a": nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            "norm_a": nn.BatchNorm2d(outputs),
            "conv_b": nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            "norm_b": nn.BatchNorm2d(outputs),
        }
        for name in order:
            self.add_module(name, parts[name])
        self.stride, self.pad = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return functional.relu(self.norm_b(self.conv_b(functional.relu(self.norm_a(self.conv_a(x))))) + shortcut)


class Renamed(nn.Module):
    def __init__(
        self, order: tuple[str, ...] = IN_ORDER, *, head_first: bool = False, classes: int = 10, aux: str = ""
    ) -> None:
        super().__init__()
        if aux == "first":
            self.aux = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16))
        if head_first:
            self.classifier = nn.Linear(64, classes)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        widths = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        self.stages = nn.Sequential(
            *(
                nn.Sequential(*(Block(i if n == 0 else o, o, s if n == 0 else 1, order) for n in range(3)))
                for i, o, s in widths
            )
        )
        if aux == "last":
            self.aux = nn.Sequential(nn.Conv2d(16, 16, 3, bias=False), nn.BatchNorm2d(16))
        if not head_first:
            self.classifier = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.stages(functional.relu(self.stem(x))).mean((2, 3)))


def true_name(target: str) -> str | None:
    """What an entry of a renamed net is called in the checkpoint."""
    module, _, leaf = target.rpartition(".")
    plain = {"stem.0": "conv1", "stem.1": "bn1", "classifier": "linear"}.get(module)
    match = re.fullmatch(r"stages\.(\d)\.(\d)\.(conv|norm)_([ab])", module)
    if match:
        kind = "conv" if match[3] == "conv" else "bn"
        plain = f"layer{int(match[1]) + 1}.{match[2]}.{kind}{'ab'.index(match[4]) + 1}"
    return f"{plain}.{leaf}" if plain else None
