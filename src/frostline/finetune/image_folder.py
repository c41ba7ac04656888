"""Images in folders: which there are, which of them can be read, and a dataset that augments reproducibly.

Knows files and pixels; knows nothing of models or training. The layout is ``train/CLASS/IMAGE`` beside
``val/CLASS/IMAGE``, or ``CLASS/IMAGE`` alone, split by a seeded share.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from frostline.compat import import_torchvision
from frostline.errors import CorruptData, DataError, MissingExtra, name_some
from frostline.extras import require
from frostline.runs.seeds import hashed_seed

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
LAYOUTS = "train/CLASS/IMAGE beside val/CLASS/IMAGE, or CLASS/IMAGE alone"
MOST_NAMES = 8
# The share of the shorter side that the classic evaluation crop keeps (Krizhevsky 2012: 224 of 256).
CROP_SHARE = 0.875

Sample = tuple[Path, int]


@dataclass(frozen=True)
class FolderData:
    """What a data folder holds.

    Attributes:
        root: the folder.
        classes: names of the classes, sorted; a label is an index into them.
        train: (path, label) of each training image, in the order of the classes, then of the paths.
        val: the same for validation.
        bad: (path, reason) of each image that cannot be read, sorted; they are in neither side.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[Sample, ...]
    val: tuple[Sample, ...]
    bad: tuple[tuple[Path, str], ...] = field(default=())


def scan_folder(
    root: str | os.PathLike[str], *, val_share: float = 0.2, seed: int = 0, skip_bad_images: bool = False
) -> FolderData:
    """Find the images of a folder and decode every one of them once.

    Hidden entries and files without an image suffix are passed over. Nothing is written, and no global random state
    is read or changed.

    Args:
        root: a folder with ``train`` and ``val``, each with one folder for each class; or with the class folders
            themselves.
        val_share: where there is no ``train`` and ``val``, the share of each class that validates: at least one
            image, and at least one is left to train.
        seed: seeds that split.
        skip_bad_images: leave out images that cannot be read; ``bad`` of the result holds them.

    Returns:
        The samples of both sides.

    Raises:
        DataError: the folder cannot be used: it does not exist, is a file, has no images, one class, different
            classes in ``train`` and ``val``, or a class without enough images.
        CorruptData: an image cannot be read, and ``skip_bad_images`` is not set.
    """
    root = Path(root)
    if not 0 < val_share < 1:
        raise DataError(f"the share of validation images is {val_share}\n  fix: a number between 0 and 1, such as 0.2")
    sides = _find_sides(root)
    found = {side: _find_images(folder) for side, folder in sides.items()}
    classes = _agreed_classes(root, found)

    every = sorted(path for images in found.values() for paths in images.values() for path in paths)
    bad = unreadable(every)
    if bad and not skip_bad_images:
        raise cannot_be_read([(path.relative_to(root), reason) for path, reason in bad], len(every), f" in {root}")
    left_out = {path for path, _ in bad}
    good = {
        side: {name: [path for path in paths if path not in left_out] for name, paths in images.items()}
        for side, images in found.items()
    }
    for side, images in good.items():
        for name, paths in images.items():
            if not paths:
                raise DataError(
                    f"the class {name!r} is left without images: none of the {len(found[side][name])} in "
                    f"{sides[side] / name} can be read\n  fix: repair them, or remove the folder of this class"
                )

    if "train" not in good:
        good = _split(root, good["all"], val_share, seed)
    train, val = (
        tuple((path, label) for label, name in enumerate(classes) for path in good[side][name])
        for side in ("train", "val")
    )
    return FolderData(root=root, classes=classes, train=train, val=val, bad=tuple(bad))


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images with labels, whose random augmentation depends on (seed, epoch, index) and on nothing else.

    So it is the same with any number of workers, in any order, and after resuming. The transform draws from torch's
    default CPU generator, which is restored after each image; python's and numpy's generators are not touched.

    Workers take a copy of the dataset when an epoch begins: with ``persistent_workers=True`` they would never hear of
    :meth:`set_epoch`, so leave it ``False``, which is torch's default.

    Args:
        samples: (path, label) pairs, as :func:`scan_folder` finds them.
        transform: turns an RGB image of PIL into a tensor.
        seed: the seed of the augmentation.
        epoch: the epoch to begin with.
    """

    def __init__(
        self, samples: Sequence[Sample], transform: Callable[[Image], Tensor], *, seed: int = 0, epoch: int = 0
    ) -> None:
        self.samples = tuple(samples)
        self.transform = transform
        self.seed = seed
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of this epoch from now on; call it before the loader is iterated."""
        self.epoch = epoch

    def sample_key(self, index: int) -> str:
        """A text that changes when the image does: its path, size and time; and its label."""
        path, label = self.samples[index]
        found = path.stat()
        return f"{path}|{found.st_size}|{found.st_mtime_ns}|{label}"

    @property
    def preprocessing_key(self) -> str:
        """A text that changes when images are prepared in another way."""
        return f"{self.transform}|seed {self.seed}"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Read, augment and return one image with its label.

        Raises:
            CorruptData: the file can no longer be read.
        """
        path, label = self.samples[index]
        try:
            image = read_image(path)
        except (Warning, MemoryError, MissingExtra):
            raise
        except Exception as error:
            raise CorruptData(
                f"{path} could be read when training began, and no longer can: {_reason(path, error)}\n"
                "  fix: restore the file, then continue with --resume"
            ) from error
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed CUDA's generators too, which fork_rng is told to leave alone.
            seed = hashed_seed(self.seed, self.epoch, index % len(self.samples))
            torch.default_generator.manual_seed(seed >> 1)
            return self.transform(image), label


def transforms_for(
    size: int | tuple[int, int], mean: Sequence[float], std: Sequence[float], *, train: bool
) -> Callable[[Image], Tensor]:
    """Build the classic transforms of image classification, all of whose randomness is torch's.

    Args:
        size: height and width of the result in pixels, or the side of a square.
        mean: one figure for each channel, of pixels in [0, 1].
        std: the same for the standard deviation.
        train: crop at random (8 to 100 % of the area) and mirror every other image; otherwise crop the centre.

    Returns:
        A callable from an RGB image of PIL to a float32 tensor, shape (3, height, width).

    Raises:
        MissingExtra: torchvision is not installed.
    """
    transforms: Any = import_torchvision("transforms")
    height, width = (size, size) if isinstance(size, int) else size
    if train:
        crop = [transforms.RandomResizedCrop((height, width)), transforms.RandomHorizontalFlip()]
    else:
        enlarged = round(height / CROP_SHARE), round(width / CROP_SHARE)
        # One number keeps the proportions of the photograph; two would squeeze it.
        resize = transforms.Resize(enlarged[0] if height == width else enlarged)
        crop = [resize, transforms.CenterCrop((height, width))]
    return transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(list(mean), list(std))])


def read_image(path: Path) -> Image:
    """Decode a whole image into RGB; of an animation the first frame. Raises whatever its decoder raises."""
    image_module: Any = require("PIL.Image", extra="train", purpose="Reading images")
    with image_module.open(path) as image:
        if image.mode == "P" and "transparency" in image.info:
            # PIL warns of a palette with transparency that goes to RGB directly.
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


def _find_sides(root: Path) -> dict[str, Path]:
    """Say which folders hold class folders: ``train`` and ``val``, or the root itself as ``all``."""
    if not root.exists():
        raise DataError(f"the data folder {root} does not exist\n  fix: --data FOLDER with {LAYOUTS}")
    if not root.is_dir():
        raise DataError(f"{root} is a file, not a data folder\n  fix: --data FOLDER with {LAYOUTS}")
    folders = [folder.name for folder in subfolders(root)]
    sides = [side for side in ("train", "val") if side in folders]
    if len(sides) == 1:
        missing = "val" if sides == ["train"] else "train"
        raise DataError(
            f"{root} has {sides[0]!r} but no {missing!r}\n"
            f"  found: {name_some(folders)}\n"
            f"  fix: rename the folder of the other side to {missing!r}, or give a folder that holds the classes "
            f"themselves, such as --data {root / sides[0]}, to split it by a share"
        )
    return {side: root / side for side in sides} or {"all": root}


def _find_images(folder: Path) -> dict[str, list[Path]]:
    """Map each class to its images, both sorted."""
    classes: dict[str, list[Path]] = {}
    for class_folder in subfolders(folder):
        classes[class_folder.name] = images_in(class_folder)
        nested = [inner.name for inner in subfolders(class_folder) if images_in(inner)]
        if nested:
            raise DataError(
                f"the class folder {class_folder} holds folders of images: {name_some(nested)}\n"
                f"  expected: {LAYOUTS}\n"
                f"  fix: --data {class_folder} if those are the classes; otherwise move their images up"
            )
    if not any(classes.values()):
        lying = len(images_in(folder))
        held = f"{lying} images that are in no class folder" if lying else name_some(sorted(classes)) or "nothing"
        raise DataError(f"no images in class folders in {folder}\n  found: {held}\n  fix: --data FOLDER with {LAYOUTS}")
    for name, paths in classes.items():
        if not paths:
            raise DataError(
                f"the class folder {folder / name} has no images\n"
                f"  expected: files that end in {', '.join(sorted(SUFFIXES))}\n"
                "  fix: add images, or remove the folder"
            )
    return classes


def _agreed_classes(root: Path, found: dict[str, dict[str, list[Path]]]) -> tuple[str, ...]:
    classes = tuple(next(iter(found.values())))
    if "val" in found and set(classes) != set(found["val"]):
        only_train = sorted(set(classes) - set(found["val"]))
        only_val = sorted(set(found["val"]) - set(classes))
        raise DataError(
            f"train and val of {root} have different classes\n"
            f"  only in train: {name_some(only_train) or 'none'}\n"
            f"  only in val: {name_some(only_val) or 'none'}\n"
            "  fix: the same class folders in both"
        )
    if len(classes) == 1:
        raise DataError(
            f"{root} has one class, {classes[0]!r}: there is nothing to tell apart\n"
            "  fix: add a folder for another class"
        )
    return classes


def _split(root: Path, images: dict[str, list[Path]], val_share: float, seed: int) -> dict[str, dict[str, list[Path]]]:
    generator = torch.Generator().manual_seed(seed)
    sides: dict[str, dict[str, list[Path]]] = {"train": {}, "val": {}}
    for name, paths in images.items():
        if len(paths) == 1:
            raise DataError(
                f"the class {name!r} of {root} has a single image, {paths[0].name}: it cannot both train and validate\n"
                "  fix: add images of this class, or remove its folder"
            )
        count = min(max(1, round(val_share * len(paths))), len(paths) - 1)
        chosen = set(torch.randperm(len(paths), generator=generator)[:count].tolist())
        sides["val"][name] = [path for index, path in enumerate(paths) if index in chosen]
        sides["train"][name] = [path for index, path in enumerate(paths) if index not in chosen]
    return sides


def unreadable(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """The images that cannot be decoded, each with the reason."""
    # Decoders release the interpreter's lock, so threads are enough. Their warnings come again when the image is used.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            reasons = pool.map(_why_unreadable, paths)
            return [(path, reason) for path, reason in zip(paths, reasons, strict=True) if reason]


def cannot_be_read(bad: Sequence[tuple[Path, str]], count: int, where: str = "", *, skips: bool = True) -> CorruptData:
    """The error that names images which cannot be decoded.

    Args:
        bad: path, as it is to be shown, and reason of each.
        count: how many there are in all.
        where: which ones, behind their number.
        skips: whether they can be left out.
    """
    lines = [f"{path}: {reason}" for path, reason in bad]
    rest = [f"(+{len(lines) - MOST_NAMES} more)"] if len(lines) > MOST_NAMES else []
    skip = ", or leave them out with --skip-bad-images" if skips else ""
    return CorruptData(
        f"{len(bad)} of {count} images{where} cannot be read\n  "
        + "\n  ".join(lines[:MOST_NAMES] + rest)
        + f"\n  fix: repair or remove them{skip}"
    )


def told_left_out(bad: Sequence[Path]) -> tuple[str, ...]:
    """What is said of images that were left out: a sentence, or none.

    Example:
        >>> told_left_out([]), told_left_out([Path("a.png")])
        ((), ('1 image could not be read and was left out: a.png',))
    """
    if not bad:
        return ()
    if len(bad) == 1:
        return (f"1 image could not be read and was left out: {bad[0]}",)
    return (f"{len(bad)} images could not be read and were left out, {bad[0]} for example",)


def _why_unreadable(path: Path) -> str:
    try:
        read_image(path)
    except (MemoryError, MissingExtra):
        raise
    except Exception as error:  # a decoder raises anything on damaged bytes: OSError, SyntaxError, struct.error ...
        return _reason(path, error)
    return ""


def _reason(path: Path, error: Exception) -> str:
    if path.is_symlink() and not path.exists():
        return "a link to a file that does not exist"
    if path.is_file() and path.stat().st_size == 0:
        return "empty file"
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image"
    return (str(error).splitlines() or [type(error).__name__])[0]


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, hidden ones left out."""
    return [path for path in _entries(folder) if path.is_dir()]


def images_in(folder: Path) -> list[Path]:
    """The images that lie in a folder itself."""
    # Links that lead nowhere count: they are named as unreadable rather than passed over.
    return [path for path in _entries(folder) if path.suffix.lower() in SUFFIXES and not path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be listed: {error.strerror}\n  fix: make it readable") from error
