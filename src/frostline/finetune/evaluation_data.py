"""Image folders to look at a model with: labelled where the classes fit it, in a fixed random order, any batch size.

Knows files, classes and pixels; knows nothing of normalization.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from frostline.compat import import_torchvision
from frostline.errors import DataError, name_some
from frostline.extras import require
from frostline.finetune.image_folder import (
    SUFFIXES,
    ImageDataset,
    cannot_be_read,
    images_in,
    subfolders,
    transforms_for,
    unreadable,
)

if TYPE_CHECKING:
    from PIL.Image import Image

AUGMENTATIONS = ("crop", "shift", "none")
LAYOUTS = "FOLDER/CLASS/IMAGE, or FOLDER/IMAGE without labels"
# How far images are shifted for training, as a share of their side: 4 of 32 pixels (He et al. 2016, section 4.2).
SHIFT_SHARE = 0.125
# So many images are asked for their size.
_MEASURED = 64


@dataclass(frozen=True)
class ImageFolder:
    """The images of one folder.

    Attributes:
        root: the folder.
        option: what stood before it on the command line, such as ``--data`` and a space.
        images: (path, class) in a fixed random order; the class is ``None`` where there are no class folders.
        classes: names of the classes, sorted; empty where there are none.
        bad: images that cannot be read and were left out.
        sizes: (width, height) of the images, as far as they were looked at.
    """

    root: Path
    option: str
    images: tuple[tuple[Path, str | None], ...]
    classes: tuple[str, ...]
    bad: tuple[Path, ...]
    sizes: frozenset[tuple[int, int]]

    def described(self) -> str:
        """How many images of how many classes, in words."""
        classes = f"{len(self.classes)} classes" if self.classes else "no class folders"
        bad = f", {len(self.bad)} that cannot be read left out" if self.bad else ""
        return f"{self.root}: {len(self.images):,} images, {classes}{bad}"


def read_image_folder(
    root: Path, *, option: str = "--data ", limit: int | None = None, seed: int = 0, skip_bad_images: bool = False
) -> ImageFolder:
    """Find the images of a folder, shuffle them, and decode those that are wanted once.

    They are shuffled because batches of a single class are not what a model normalizes with in training. Hidden entries
    and files without an image suffix are passed over.

    Args:
        root: a folder with one folder for each class, or with images.
        option: what stood before it on the command line.
        limit: keep so many of the shuffled images.
        seed: seeds the order.
        skip_bad_images: leave out images that cannot be read.

    Raises:
        DataError: the folder does not exist, is a file, or has no images; or it holds ``train`` and ``val``.
        CorruptData: an image cannot be read, and ``skip_bad_images`` is not set.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"{option}{root}: the folder {what}\n  fix: {option}FOLDER with {LAYOUTS}")
    found = _find(root, option)
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    images = [found[i] for i in order[:limit]]
    bad = unreadable([path for path, _ in images])
    if bad and not skip_bad_images:
        raise cannot_be_read([(path.relative_to(root), reason) for path, reason in bad], len(images), f" in {root}")
    left_out = {path for path, _ in bad}
    good = tuple(image for image in images if image[0] not in left_out)
    if not good:
        raise DataError(f"{option}{root}: none of its {len(images)} images can be read\n  fix: a folder of images")
    classes = sorted({name for _, name in found if name is not None})
    return ImageFolder(root, option, good, tuple(classes), tuple(sorted(left_out)), _sizes([p for p, _ in good]))


def common_classes(
    folders: Sequence[ImageFolder], outputs: int | None, *, instead: str = "--no-metric"
) -> tuple[str, ...]:
    """The classes that labels stand for: those of all folders together, sorted by name as the model was trained with.

    Args:
        folders: all folders.
        outputs: how many classes the model tells apart.
        instead: the option that goes without labels, for messages.

    Raises:
        DataError: a folder has no class folders, or there are more or fewer classes than the model tells apart.
    """
    for folder in folders:
        if not folder.classes:
            raise DataError(
                f"{folder.option}{folder.root}: its images are in no class folders, so there are no labels to measure "
                f"accuracy by\n  expected: {folder.root}/CLASS/IMAGE\n  fix: sort them by class, or pass {instead}"
            )
    classes = sorted({name for folder in folders for name in folder.classes})
    if outputs is None:
        raise DataError(
            f"the model gives no logits of shape (N, classes), which accuracy could be measured by\n  fix: {instead}"
        )
    if len(classes) == outputs:
        return tuple(classes)
    lines = [f"the data has {len(classes)} classes, and the model tells {outputs} apart, so labels cannot be matched"]
    for folder in folders:
        lines.append(f"  {folder.option}{folder.root}: {name_some(folder.classes)}")
    fix = f"a folder for each of the {outputs} classes, named so that they sort in the order of training"
    raise DataError("\n".join([*lines, f"  fix: {fix}; or pass {instead}"]))


@dataclass(frozen=True)
class Pixels:
    """How images become tensors.

    Attributes:
        size: height and width of the result.
        mean: one figure for each channel, of pixels in [0, 1].
        std: the same for the standard deviation.
        as_they_are: all images have this size already, and are neither resized nor cropped.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    as_they_are: bool

    @staticmethod
    def for_images(
        folders: Sequence[ImageFolder], size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]
    ) -> Pixels:
        """For the images of some folders."""
        sizes = {each for folder in folders for each in folder.sizes}
        return Pixels(size, mean, std, sizes == {(size[1], size[0])})

    def described(self) -> str:
        """In words."""
        height, width = self.size
        how = "taken as they are" if self.as_they_are else "resized, centre cropped"
        return f"{width} x {height} pixels, {how}; mean {_figures(self.mean)}, std {_figures(self.std)}"

    def evaluation(self) -> Callable[[Image], Tensor]:
        """The transform of images that a model is judged on."""
        return self._as_it_is([]) if self.as_they_are else transforms_for(self.size, self.mean, self.std, train=False)

    def training(self, augmentation: str) -> Callable[[Image], Tensor]:
        """The transform of training images.

        Args:
            augmentation: ``crop`` (a random part of 8 to 100 % of the area, mirrored or not), ``shift`` (moved by up to
                an eighth, mirrored or not) or ``none``.
        """
        if augmentation == "none":
            return self.evaluation()
        if augmentation == "crop":
            return transforms_for(self.size, self.mean, self.std, train=True)
        transforms: Any = import_torchvision("transforms")
        margin = [round(SHIFT_SHARE * side) for side in (self.size[1], self.size[0])]
        moved = [transforms.RandomCrop(self.size, padding=margin), transforms.RandomHorizontalFlip()]
        fit = [] if self.as_they_are else [transforms.Resize(max(self.size)), transforms.CenterCrop(self.size)]
        return self._as_it_is([*fit, *moved])

    def _as_it_is(self, before: list[Any]) -> Callable[[Image], Tensor]:
        transforms: Any = import_torchvision("transforms")
        normalize = transforms.Normalize(list(self.mean), list(self.std))
        return transforms.Compose([*before, transforms.ToTensor(), normalize])


class Batches:
    """Batches of a folder, the same ones in the same order on every pass; tells a listener how far a pass is.

    Args:
        folder: the images.
        transform: what makes tensors of them.
        classes: the names that labels stand for; without them batches have no labels.
        batch_size: how many images a batch. A last batch of one image is left out, because it has no variance.
        workers: processes that decode.
        name: what the listener is told that this is.
        listener: called with the name, the batches done and all of them.
    """

    def __init__(
        self,
        folder: ImageFolder,
        transform: Callable[[Image], Tensor],
        *,
        classes: Sequence[str] | None,
        batch_size: int,
        workers: int = 0,
        name: str = "data",
        listener: Callable[[str, int, int], None] | None = None,
    ) -> None:
        labels = {each: i for i, each in enumerate(classes or ())}
        samples = [(path, labels.get(label or "", -1)) for path, label in folder.images]
        images = ImageDataset(samples, transform)
        self._loader: DataLoader[Any] = DataLoader(
            images if classes else _WithoutLabels(images),
            batch_size=batch_size,
            num_workers=workers,
            drop_last=len(samples) % batch_size == 1 and len(samples) > batch_size,
        )
        self._name, self._listener = name, listener

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        for done, batch in enumerate(self._loader, 1):
            yield batch
            if self._listener is not None:
                self._listener(self._name, done, len(self))


class _WithoutLabels(Dataset[Tensor]):
    def __init__(self, images: ImageDataset) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index][0]


def _find(root: Path, option: str) -> list[tuple[Path, str | None]]:
    folders = subfolders(root)
    nested = [folder.name for folder in folders if any(images_in(inner) for inner in subfolders(folder))]
    if nested:
        raise DataError(
            f"{option}{root}: its folders {name_some(nested)} hold folders of images themselves\n"
            f"  expected: {LAYOUTS}\n  fix: {option}{root / nested[-1]}, if its folders are the classes"
        )
    labelled = [(path, folder.name) for folder in folders for path in images_in(folder)]
    found = labelled or [(path, None) for path in images_in(root)]
    if not found:
        held = name_some([folder.name for folder in folders]) or "nothing"
        raise DataError(
            f"{option}{root}: no images in it\n  found: {held}\n"
            f"  expected: {LAYOUTS}, in files that end in {', '.join(sorted(SUFFIXES))}\n  fix: {option}FOLDER"
        )
    return list(found)


def _sizes(paths: Sequence[Path]) -> frozenset[tuple[int, int]]:
    image_module: Any = require("PIL.Image", extra="train", purpose="Reading images")
    sizes: set[tuple[int, int]] = set()
    for path in paths[:_MEASURED]:
        with image_module.open(path) as image:
            sizes.add(image.size)
    return frozenset(sizes)


def _figures(values: Sequence[float]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{value:g}" for value in values)
