"""What fine-tuning strategies start from: images, a small residual net, and its training; nothing is downloaded.

The start is trained on the CIFAR-10 copy and on the photos and cartoons of PACS together. The tasks are ants and bees,
and the art paintings and sketches of PACS, of which it has seen no image.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import planted_images
import torch
from planted_images import DATA, Split, shifted_and_flipped
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torch.nn import functional

SIZE, WIDTH, SHIFT = 64, 32, 6
EPOCHS, BATCH, RATE, WEIGHT_DECAY = 40, 64, 0.05, 5e-4
START_SEED = 0
SEEN = ("photo", "cartoon")
UNSEEN = ("art_painting", "sketch")
# Of 40 images of a class and domain, so many are held out, which ones by seed.
HELD_OUT = 0.3


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        shortcut = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Identity() if same else nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (inner + self.shortcut(x)).relu()


class Net(nn.Module):
    """A residual net of ten layers: a stem, four blocks of which each but the first halves the map, and a head."""

    def __init__(self, classes: int, width: int = WIDTH) -> None:
        super().__init__()
        stem = (nn.Conv2d(3, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))
        self.stem = nn.Sequential(*stem)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(*(Block(widths[n], widths[n + 1], 1 if n == 0 else 2) for n in range(4)))
        self.head = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))

    def trunk_state(self) -> dict[str, Tensor]:
        """What the trunk is, in numbers: parameters and running statistics, as copies."""
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("head.")}
        return {name: tensor.clone() for name, tensor in state.items() if tensor.is_floating_point()}


@dataclass(frozen=True)
class Task:
    """Images to train on, and others to judge by.

    Attributes:
        name: of the task.
        classes: how many.
    """

    name: str
    classes: int
    train: Split
    val: Split

    def without_val(self, seed: int) -> Task:
        """The training images alone, a part of them held out: what rates are chosen on."""
        train, held = split_by_seed(self.train, seed, 0.25)
        return Task(self.name, self.classes, train, held)


def split_by_seed(split: Split, seed: int, share: float) -> tuple[Split, Split]:
    """Hold out a share of each class."""
    generator = Generator().manual_seed(seed)
    held = torch.zeros(len(split), dtype=torch.bool)
    for label in split.labels.unique():
        members = (split.labels == label).nonzero().squeeze(1)
        order = members[torch.randperm(len(members), generator=generator)]
        held[order[: round(share * len(members))]] = True
    return split.where(~held), split.where(held)


@cache
def domain(name: str) -> Split:
    """One domain of PACS, all of it."""
    train, held = planted_images.pacs(name, 0, SIZE)
    return train.joined(held)


@cache
def insects() -> tuple[Split, Split]:
    folder = DATA / "hymenoptera"
    return planted_images.images_in(folder / "train", SIZE, 1000), planted_images.images_in(folder / "val", SIZE, 1000)


def real_task(name: str, seed: int) -> Task:
    """Ants and bees as they are split; a domain of PACS split by seed."""
    if name == "hymenoptera":
        return Task(name, 2, *insects())
    return Task(name, 7, *split_by_seed(domain(name), seed, HELD_OUT))


def synthetic_task(name: str, seed: int, size: int = 32) -> Task:
    """Stripes of three directions under noise: three classes of eight images, and four each to judge by."""
    generator = Generator().manual_seed(sum(name.encode()) + seed)
    labels = torch.arange(36) % 3
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    along = torch.stack([rows, columns, rows + columns]).mul(math.pi / 4).sin()
    noise = torch.rand((36, 3, size, size), generator=generator)
    split = Split.of((along[labels].unsqueeze(1) + 1) / 4 + noise / 2, labels)
    return Task(name, 3, split.where(torch.arange(36) < 24), split.where(torch.arange(36) >= 24))


# The training of the start ------------------------------------------------------------------------------------------


def start_images() -> tuple[Split, Split]:
    """CIFAR-10 and the domains that are seen, classes of one name as one, shuffled; and test images of CIFAR-10."""
    train, test = (Split.of(_enlarged(split.pixels), split.labels) for split in planted_images.cifar10())
    kinds = _class_names(DATA / "cifar10" / "train")
    for name in SEEN:
        found = _class_names(DATA / "pacs" / name)
        kinds += [kind for kind in found if kind not in kinds]
        number = torch.tensor([kinds.index(kind) for kind in found])
        part = domain(name)
        train = train.joined(Split.of(part.pixels, number[part.labels]))
    return train, test


def trained_start(images: Split, seed: int, epochs: int, width: int) -> Net:
    """A net trained from random values by SGD, its rate in one cycle."""
    torch.manual_seed(seed)
    model = Net(int(images.labels.max()) + 1, width)
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, weight_decay=WEIGHT_DECAY, nesterov=True)
    steps = epochs * math.ceil(len(images) / BATCH)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
    generator = Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for pixels, labels in batches(images, BATCH, generator):
            optimizer.zero_grad()
            functional.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
            scheduler.step()
    return model.eval()


def kept_start() -> tuple[Path, dict[str, float]]:
    """The start in a file of the system's temporary folder, trained if it is not there; and what is known of it."""
    settings = [SIZE, WIDTH, SHIFT, EPOCHS, BATCH, RATE, WEIGHT_DECAY, START_SEED, SEEN, torch.__version__]
    mark = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / "frostline-benchmarks"
    file, facts = folder / f"start-{mark}.safetensors", folder / f"start-{mark}.json"
    if not (file.is_file() and facts.is_file()):
        train, test = start_images()
        clock = os.times()
        model = trained_start(train, START_SEED, EPOCHS, WIDTH)
        known = {
            "images": len(train),
            "epochs": EPOCHS,
            "cpu_seconds": os.times().user - clock.user,
            "cifar10_accuracy": accuracy(model, test),
        }
        write_start(model, file)
        facts.write_text(json.dumps(known), encoding="utf-8")
    return file, json.loads(facts.read_text(encoding="utf-8"))


def write_start(model: Net, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    state: Mapping[str, Tensor] = model.state_dict()
    save_file(dict(state), file)


# Batches and accuracy -----------------------------------------------------------------------------------------------


def normal(pixels: Tensor) -> Tensor:
    return (pixels - 0.45) / 0.25


def batches(split: Split, size: int, generator: Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image once, shuffled, moved a little and mirrored or not; a rest of one image is left out."""
    augment = shifted_and_flipped(SHIFT, flip=True)
    for rows in torch.randperm(len(split), generator=generator).split(size):
        if len(rows) > 1:
            yield normal(augment(split.pixels[rows], generator)), split.labels[rows]


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """The share that is right, in eval mode; the mode is put back."""
    was_training = model.training
    model.eval()
    said = torch.cat([model(normal(pixels)).argmax(1) for pixels in split.pixels.split(64)])
    model.train(was_training)
    return float((said == split.labels).double().mean())


def _enlarged(pixels: Tensor) -> Tensor:
    return functional.interpolate(pixels, (SIZE, SIZE), mode="bilinear", align_corners=False)


def _class_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())
