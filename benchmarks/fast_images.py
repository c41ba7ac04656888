"""The images of the benchmarks of `fast`: decoded once, kept in memory, and shared by all sides.

Decoding is not what is compared: it is measured apart, by a loader with two workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from planted_images import DATA
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from frostline.runs.seeds import mix_seed, order_of

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# As much wider than the crop as the classic evaluation crop has it: 256 for 224.
MARGIN = 8 / 7


@dataclass(frozen=True)
class Decoding:
    """How fast files become pixels.

    Attributes:
        images: how many were decoded.
        workers: processes.
        seconds: for all of them, the start of the workers left out.
    """

    images: int
    workers: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds


class Files(Dataset[tuple[Tensor, int]]):
    """Image files with labels, read and brought to one size."""

    def __init__(self, samples: Sequence[tuple[Path, int]], side: int) -> None:
        self.samples, self.side = samples, side

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        path, label = self.samples[index]
        with Image.open(path) as image:
            whole = image.convert("RGB")
        # The middle square, as the evaluation of torchvision's models takes it; small images are enlarged.
        width, height = whole.size
        shorter = min(width, height)
        left, top = (width - shorter) // 2, (height - shorter) // 2
        square = whole.resize(
            (self.side, self.side), Image.Resampling.BILINEAR, box=(left, top, left + shorter, top + shorter)
        )
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous(), label


class Pictures(Dataset[tuple[Tensor, int]]):
    """Decoded images; a sample is a crop of one.

    The crop is the middle one; or, with ``augment``, a random one that is mirrored or not, drawn by (seed, epoch,
    index) alone.

    Args:
        pixels: ``(N, 3, side, side)``, normalized: a sample costs nothing but its copy into a batch.
        labels: ``(N,)``.
        size: of the crop.
        augment: whether crops are random.
        seed: of the random ones.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, size: int, *, augment: bool = False, seed: int = 0) -> None:
        self.pixels, self.labels, self.size, self.augment, self.seed = pixels, labels, size, augment, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.labels)

    def set_epoch(self, epoch: int) -> None:
        """Random crops are new in each epoch."""
        self.epoch = epoch

    def augmented(self, seed: int) -> Pictures:
        """The same images, with random crops."""
        return Pictures(self.pixels, self.labels, self.size, augment=True, seed=seed)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        room = self.pixels.shape[-1] - self.size
        top = left = room // 2
        mirror = False
        if self.augment:
            generator = Generator().manual_seed(mix_seed(self.seed, self.epoch, index))
            top, left = torch.randint(room + 1, (2,), generator=generator).tolist()
            mirror = bool(torch.rand((), generator=generator) < 0.5)
        crop = self.pixels[index, :, top : top + self.size, left : left + self.size]
        return crop.flip(2) if mirror else crop, int(self.labels[index])


def normalized(pixels: Tensor) -> Tensor:
    """Bytes to what a network of torchvision takes."""
    return (pixels.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class Order(Sampler[int]):
    """The order that the library trains in, for the others; tells the data set which epoch it is, from 1 on."""

    def __init__(self, data: Pictures, seed: int) -> None:
        self.data, self.seed, self.epoch = data, seed, 1

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[int]:
        self.data.set_epoch(self.epoch)
        rows = order_of(len(self.data), self.seed, self.epoch)
        self.epoch += 1
        return iter(rows.tolist())


def decoded(folder: Path, size: int, per_class: int, workers: int = 2) -> tuple[Pictures, Decoding]:
    """The first images of each class of a folder, in the order of their names."""
    kinds = sorted(path for path in folder.iterdir() if path.is_dir())
    samples = [(file, label) for label, kind in enumerate(kinds) for file in sorted(kind.iterdir())[:per_class]]
    files = Files(samples, round(size * MARGIN))
    loader = iter(DataLoader(files, 8, num_workers=workers))
    parts = [next(loader)]
    # From the first batch on: what the start of the processes took is no part of the rate.
    start = time.perf_counter()
    parts += list(loader)
    rest = len(samples) - len(parts[0][1])
    seconds = (time.perf_counter() - start) * len(samples) / rest
    pixels, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return Pictures(normalized(pixels), labels, size), Decoding(len(samples), workers, seconds)


def hymenoptera(size: int) -> tuple[Pictures, Pictures, Decoding]:
    """Ants and bees: 245 photographs to train on and 153 to judge by."""
    train, decoding = decoded(DATA / "hymenoptera" / "train", size, 1000)
    val, _ = decoded(DATA / "hymenoptera" / "val", size, 1000)
    return train, val, decoding


def cifar(size: int, train_per_class: int, val_per_class: int) -> tuple[Pictures, Pictures, Decoding]:
    """A part of CIFAR-10, enlarged."""
    train, decoding = decoded(DATA / "cifar10" / "train", size, train_per_class)
    val, _ = decoded(DATA / "cifar10" / "test", size, val_per_class)
    return train, val, decoding


def stripes(size: int, count: int, seed: int) -> Pictures:
    """Three directions of stripes under noise, for runs that only show that everything works."""
    generator = Generator().manual_seed(seed)
    side = round(size * MARGIN)
    labels = torch.arange(count) % 3
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    along = torch.stack([rows, columns, rows + columns]).mul(math.pi / 4).sin()
    noise = torch.rand((count, 3, side, side), generator=generator)
    pixels = ((along[labels].unsqueeze(1) + 1) / 4 + noise / 2).mul(255)
    return Pictures(normalized(pixels), labels, size)
