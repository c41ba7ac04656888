"""Which data a folder holds, found by looking, and how its classes are split where nothing else was said."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from frostline.errors import DataError
from frostline.meta.classes import ClassSet
from frostline.meta.digits_classes import digits
from frostline.meta.image_classes import image_folder
from frostline.meta.omniglot import omniglot
from frostline.meta.run_settings import MetaConfig
from frostline.meta.splits import Splits

TRAIN, VAL, TEST = "train", "val", "test"
_OMNIGLOT = ("images_background", "images_evaluation")
# learn2learn's sizes, 1,100 and 100 and the rest of 1,623 characters; those of mini-ImageNet, 64, 16 and 20, elsewhere.
_OMNIGLOT_SIZES = {TRAIN: 1100, VAL: 100}
_SHARES = {VAL: 0.16, TEST: 0.2}


class FoundData(NamedTuple):
    """Classes, and what was found, in a sentence."""

    class_set: ClassSet
    said: str


def load(config: MetaConfig) -> FoundData:
    """Load the data that a run was asked for.

    Omniglot is told by the names of its archives or folders, or by its characters; anything else is a folder of
    images in class folders. Only reads.

    Raises:
        DataError: the folder does not exist, or holds neither.
        CorruptData: an archive or an image cannot be read.
        MissingExtra: what decodes them is not installed.

    Example:
        >>> load(MetaConfig()).said
        'scikit-learn digits: 40 classes in 10 groups'
    """
    if config.data is None:
        found, name = digits(rotations=config.rotations), "scikit-learn digits"
    elif _is_omniglot(Path(config.data)):
        found = omniglot(
            config.data,
            size=config.size or 28,
            resample=config.resample or "lanczos",
            invert=config.invert,
            rotations=config.rotations,
        )
        name = "Omniglot"
    else:
        path = Path(config.data)
        if not path.is_dir():
            what = "is a file, and no archive of Omniglot" if path.exists() else "does not exist"
            raise DataError(
                f"--data {path}: it {what}\n  fix: a folder with images_background.zip and images_evaluation.zip, or "
                "with a folder of images for each class"
            )
        found = image_folder(path, size=config.size or 84, resample=config.resample or "bilinear")
        name = "image folder"
    groups = len(found.members)
    grouped = f" in {groups:,} groups" if groups != len(found) else ""
    return FoundData(found, f"{name}: {len(found):,} classes{grouped}")


def splits_for(config: MetaConfig, class_set: ClassSet) -> Splits:
    """The splits of a file, or drawn ones for training, validation and test, each with classes enough for a task.

    Raises:
        DataError: there are too few classes, or the file does not fit them.
    """
    if config.splits is not None:
        splits = Splits.read(config.splits, class_set)
        missing = [name for name in (TRAIN, TEST) if name not in splits.classes]
        if missing:
            raise DataError(
                f"--splits {config.splits} has no split {missing[0]!r}\n  found: {', '.join(splits.classes)}\n"
                f"  fix: splits named {TRAIN!r}, {TEST!r} and, to validate, {VAL!r}"
            )
        return splits
    groups = len(class_set.members)
    # Groups stay together, so a split has at least the classes of its smallest groups.
    smallest = min(len(members) for members in class_set.members.values())
    need = -(-config.way // smallest)
    if groups < 3 * need:
        possible = groups // 3 * smallest
        smaller = f"--way {possible}, or more classes" if possible >= 2 else "more classes"
        raise DataError(
            f"{config.way}-way tasks for each of training, validation and test take {3 * need} groups of classes\n"
            f"  found: {groups}, the smallest of {smallest}\n  fix: {smaller}; or --splits FILE, without validation"
        )
    if class_set.describe().get("source") == "omniglot" and groups > sum(_OMNIGLOT_SIZES.values()) + need:
        sizes: dict[str, int | float | str] = {**_OMNIGLOT_SIZES, TEST: "rest"}
    else:
        others = {name: max(need, round(share * groups)) for name, share in _SHARES.items()}
        sizes = {TRAIN: groups - sum(others.values()), **others}
    return Splits.draw(class_set, sizes, seed=config.seed)


def _is_omniglot(path: Path) -> bool:
    if path.stem in _OMNIGLOT or any((path / f"{name}{end}").exists() for name in _OMNIGLOT for end in ("", ".zip")):
        return True
    return path.is_dir() and any((alphabet / "character01").is_dir() for alphabet in path.iterdir())
