"""The real images that the nets with planted faults see, as pixels between 0 and 1, and what may be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

# Pixels in, pixels out; the generator is for those that draw noise.
Look: TypeAlias = "Callable[[Tensor, Generator], Tensor]"


@dataclass(frozen=True)
class Split:
    """Images with labels, and the number of the domain that each is of.

    Attributes:
        pixels: ``(N, channels, height, width)``, between 0 and 1.
        labels: ``(N,)``.
        domains: ``(N,)``, all 0 where there is one domain.
    """

    pixels: Tensor
    labels: Tensor
    domains: Tensor

    @staticmethod
    def of(pixels: Tensor, labels: Tensor, domain: int = 0) -> Split:
        """A split of one domain."""
        return Split(pixels, labels, torch.full_like(labels, domain))

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, chosen: Tensor) -> Split:
        """Some of the samples: indices or a mask."""
        return Split(self.pixels[chosen], self.labels[chosen], self.domains[chosen])

    def domain(self, number: int) -> Split:
        """The samples of one domain."""
        return self.where(self.domains == number)

    def joined(self, other: Split) -> Split:
        """Both, one after the other."""
        return Split(
            torch.cat([self.pixels, other.pixels]),
            torch.cat([self.labels, other.labels]),
            torch.cat([self.domains, other.domains]),
        )


@cache
def digits(seed: int) -> tuple[Split, Split]:
    """The handwritten digits inside scikit-learn: 1200 to train on and 597 held out, drawn by ``seed``."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=Generator().manual_seed(seed))
    pixels = torch.from_numpy(found.images).float().div(16).unsqueeze(1)[order]
    labels = torch.from_numpy(found.target).long()[order]
    return Split.of(pixels[:1200], labels[:1200]), Split.of(pixels[1200:], labels[1200:])


@cache
def cifar10() -> tuple[Split, Split]:
    """The JPEG copy of CIFAR-10: 3000 images to train on and 1000 held out."""
    return images_in(DATA / "cifar10" / "train", 32, 300), images_in(DATA / "cifar10" / "test", 32, 100)


@cache
def pacs(domain: str, number: int, size: int = 32) -> tuple[Split, Split]:
    """One domain of PACS: 28 images of each of the 7 classes to train on, 12 held out."""
    whole = images_in(DATA / "pacs" / domain, size, 40)
    held = torch.arange(len(whole)) % 40 >= 28
    numbered = Split(whole.pixels, whole.labels, torch.full_like(whole.labels, number))
    return numbered.where(~held), numbered.where(held)


def images_in(folder: Path, size: int, per_class: int) -> Split:
    """The first images of each class, in the order of their names."""
    from PIL import Image

    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, kind in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for file in sorted(kind.iterdir())[:per_class]:
            with Image.open(file) as image:
                images.append(np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)))
            labels.append(label)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div(255).contiguous()
    return Split.of(pixels, torch.tensor(labels))


def shifted_and_flipped(shift: int, flip: bool) -> Look:
    """A light augmentation: moved by up to ``shift`` pixels, and mirrored or not."""

    def augment(pixels: Tensor, generator: Generator) -> Tensor:
        n, _, height, width = pixels.shape
        padded = functional.pad(pixels, (shift,) * 4, mode="replicate")
        moves = torch.randint(2 * shift + 1, (2, n), generator=generator)
        rows = moves[0, :, None] + torch.arange(height)
        columns = moves[1, :, None] + torch.arange(width)
        each = torch.arange(n)[:, None, None]
        moved = padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        mirrored = torch.rand(n, generator=generator) < (0.5 if flip else 0.0)
        return torch.where(mirrored[:, None, None, None], moved.flip(3), moved)

    return augment


def flat_and_noisy(contrast: float, noise: float) -> Look:
    """Less contrast, and sensor noise."""

    def look(pixels: Tensor, generator: Generator) -> Tensor:
        middle = pixels.mean((1, 2, 3), keepdim=True)
        flat = middle + contrast * (pixels - middle)
        return (flat + noise * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)

    return look


def blurred(times: int) -> Look:
    """Out of focus: a binomial filter of width 3, several times."""
    kernel = torch.tensor([[1.0, 2.0, 1.0]]) / 4

    def look(pixels: Tensor, _generator: Generator) -> Tensor:
        channels = pixels.shape[1]
        weight = (kernel.T @ kernel).expand(channels, 1, 3, 3)
        for _ in range(times):
            pixels = functional.conv2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), weight, groups=channels)
        return pixels

    return look


def tinted(by: float) -> Look:
    """Another light: the channels are shifted by different amounts, a single one by all of it."""

    def look(pixels: Tensor, _generator: Generator) -> Tensor:
        shift = by * torch.linspace(1.0, -0.6, pixels.shape[1])[:, None, None]
        return (pixels + shift).clamp(0, 1)

    return look


def negative(share: float) -> Look:
    """Between the picture (0) and its photographic negative (1); 0.5 would be all grey."""

    def look(pixels: Tensor, _generator: Generator) -> Tensor:
        return (1 - share) * pixels + share * (1 - pixels)

    return look


def dimmed(gain: float, offset: float) -> Look:
    """Another camera: a gain and an offset."""

    def look(pixels: Tensor, _generator: Generator) -> Tensor:
        return (gain * pixels + offset).clamp(0, 1)

    return look
