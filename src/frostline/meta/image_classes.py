"""Any folder of images as few-shot classes: the class of an image is the path of the folder that it lies in.

Knows folders; how a picture is decoded and resized is the business of ``pictures``.
"""

from __future__ import annotations

import os
import unicodedata
from functools import partial
from pathlib import Path
from typing import Literal

from frostline.errors import DataError, name_some
from frostline.meta.classes import ClassSet, ImageClass, refuse_unknown
from frostline.meta.pictures import SUFFIXES, Picture, decode, read_bounded

GROUPS = ("class", "parent")
LAYOUT = "FOLDER/CLASS/IMAGE or FOLDER/CLASS/SUBCLASS/IMAGE"
_MOST_BYTES = 2**28


def image_folder(
    path: str | os.PathLike[str],
    *,
    size: int,
    channels: Literal[1, 3] = 3,
    resample: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "bilinear",
    groups: Literal["class", "parent"] = "class",
) -> ClassSet:
    """Load a folder of images as classes, shape (channels, size, size), values in [0, 1].

    Each image is resized so that its shorter side has ``size`` pixels, and the longer one is cropped at both ends.
    All images are held in memory, a byte for each value: 60,000 of 84 x 84 in colours take 1.3 GB. Hidden entries and
    files without an image suffix are passed over. Only reads; the result depends on names and bytes alone, not on the
    order in which folders are listed, nor on how a file system writes accents.

    Args:
        path: the folder; a class is named by its path below it, with slashes: "CLASS", or "CLASS/SUBCLASS".
        size: height and width in pixels.
        channels: 3 for colours, 1 for grey.
        resample: which filter of Pillow resizes.
        groups: "class": each class by itself; "parent": classes of one folder stay in one split, as the broader
            categories do in tieredImageNet.

    Raises:
        MissingExtra: Pillow is not installed.
        DataError: the path is no folder or has no images in class folders, images lie beside class folders, links lead
            round in circles, or a setting has no such value.
        CorruptData: images cannot be decoded; the first eight are named, each with the reason.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("bee", "ant"):
        ...         Path(folder, name).mkdir()
        ...         Image.new("RGB", (40, 30), "red").save(Path(folder, name, "1.png"))
        ...     class_set = image_folder(folder, size=16)
        >>> class_set.names, class_set.images("ant")[0, :, 0, 0].tolist()
        (('ant', 'bee'), [1.0, 0.0, 0.0])

    Source:
        Groups by parent: Ren et al., "Meta-Learning for Semi-Supervised Few-Shot Classification", ICLR 2018, section 4.
    """
    refuse_unknown("groups", groups, GROUPS)
    root = Path(path)
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"{root} {what}\n  fix: {LAYOUT}")
    found: dict[str, list[Path]] = {}
    _look(root, root, found, above=(os.path.realpath(root),))
    if not found:
        raise DataError(f"{root} has no images in class folders\n  expected: {LAYOUT}, files that end in {_endings()}")
    names = sorted(found)
    pictures = [
        Picture(file.relative_to(root).as_posix(), partial(read_bounded, file, _MOST_BYTES))
        for name in names
        for file in found[name]
    ]
    pixels = decode(pictures, size=size, channels=channels, resample=resample, source=root)
    classes: list[ImageClass] = []
    begin = 0
    for name in names:
        end = begin + len(found[name])
        parent = name.rpartition("/")[0] if groups == "parent" else ""
        classes.append(ImageClass(name, pixels[begin:end], group=parent or name))
        begin = end
    facts = {"source": f"image folder {root.resolve().name}", "size": size, "resample": resample, "groups_by": groups}
    return ClassSet(classes, description={**facts, "inverted": False})


def _look(root: Path, folder: Path, found: dict[str, list[Path]], above: tuple[str, ...]) -> None:
    """Enter the images of a folder and of those below it, sorted by name."""
    try:
        names = [name for name in os.listdir(folder) if not name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be listed: {error.strerror}\n  fix: make it readable") from error
    entries = [folder / name for name in sorted(names, key=_composed)]
    folders = [entry for entry in entries if entry.is_dir()]
    # Links that lead nowhere count: they are named as unreadable rather than passed over.
    images = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and not entry.is_dir()]
    before = len(found)
    for inner in folders:
        real = os.path.realpath(inner)
        if real in above:
            raise DataError(f"{inner} leads back to {real}, above it\n  fix: remove that link")
        _look(root, inner, found, (*above, real))
    if not images:
        return
    if folder == root or len(found) > before:
        beside = f", beside {name_some([f.name for f in folders])}" if len(found) > before else ""
        what = "lie in no class folder" if folder == root else "lie beside folders of images"
        raise DataError(
            f"{len(images)} images of {folder} {what}{beside}: {name_some([image.name for image in images])}\n"
            f"  expected: {LAYOUT}\n  fix: move them into a folder of their own, or remove them"
        )
    name = _composed(folder.relative_to(root).as_posix())
    if name in found:
        raise DataError(f"{root} has two folders that read {name!r}, in two ways of writing accents\n  fix: rename one")
    found[name] = images


def _composed(name: str) -> str:
    # Some file systems take accents apart: the same name is to be the same class, at the same place, everywhere.
    return unicodedata.normalize("NFC", name)


def _endings() -> str:
    return ", ".join(sorted(SUFFIXES))
