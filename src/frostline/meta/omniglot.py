"""Omniglot, 1,623 handwritten characters of 50 alphabets, from its two archives or a folder unpacked from them.

Knows where drawings lie and what may be wrong with an archive; nothing of it is unpacked to the disk.
"""

from __future__ import annotations

import errno
import os
import zipfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from frostline.errors import CorruptData, DataError, name_some, printable
from frostline.meta.classes import ROTATIONS, ClassSet, ImageClass, refuse_unknown
from frostline.meta.pictures import Picture, decode, read_bounded

PARTS = ("background", "evaluation")
DRAWINGS = 20
LAYOUT = "images_background.zip and images_evaluation.zip, or ALPHABET/CHARACTER/NAME.png"
_FOLDERS = {f"images_{part}": part for part in PARTS}
# The largest of the 32,460 drawings has less than 600 bytes.
_MOST_BYTES = 2**20
_ENCRYPTED = 0x1
_PASSED_OVER = (".", "__MACOSX")


class _Drawing(NamedTuple):
    character: str
    name: str
    part: str
    picture: Picture


def omniglot(
    path: str | os.PathLike[str],
    *,
    size: int = 28,
    resample: Literal["nearest", "box", "bilinear", "bicubic", "lanczos"] = "lanczos",
    invert: bool = True,
    rotations: Literal["classes", "none"] = "classes",
) -> ClassSet:
    """Load all drawings of Omniglot as classes named "ALPHABET/CHARACTER", shape (1, size, size), values in [0, 1].

    Only what lies below ``path`` is read; nothing is written. The result depends on names and bytes alone: neither on
    the order of entries in an archive or folder, nor on which of the two the drawings come from. Entries of macOS
    (``__MACOSX``, ``._``) and hidden ones are passed over. The 32,460 drawings take about 5 seconds, and 25 MB at
    28 x 28.

    Published numbers differ in every setting here, which :meth:`ClassSet.describe` tells. Vinyals et al. (2016) and
    Finn et al. (2017): 28 x 28, rotations as classes. The example of ``higher`` resizes by Pillow's default, which was
    nearest before Pillow 7 and is bicubic since, does not invert, and has no rotations.

    Args:
        path: the folder with both archives; a folder with ``images_background`` and ``images_evaluation`` unpacked, or
            with the alphabets themselves; or one archive. Where a part is there as archive and unpacked, the archive
            is read.
        size: height and width in pixels; the drawings have 105 x 105.
        resample: which filter of Pillow resizes.
        invert: strokes are 1 and paper is 0; otherwise, as in the files, strokes are 0.
        rotations: "classes" makes four classes of each character, named "ALPHABET/CHARACTER/rot090" and so on, which
            are of one group; "none" leaves them as they are.

    Raises:
        MissingExtra: Pillow is not installed.
        DataError: the path does not exist or has no drawings, one of the two parts is missing, a character has not
            20 drawings, an entry is encrypted or packed by an unusual method, or a setting has no such value.
        CorruptData: an archive or a drawing is damaged, or unpacks to more than a drawing can be; it is named.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> with TemporaryDirectory() as folder:
        ...     character = Path(folder, "Latin", "character01")
        ...     character.mkdir(parents=True)
        ...     for drawing in range(20):
        ...         Image.new("1", (105, 105), 1).save(character / f"{drawing:02d}.png")
        ...     omniglot(folder)
        <ClassSet omniglot: 4 classes in 1 groups, 1 x 28 x 28>

    Source:
        Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic program induction",
        Science 350, 2015; https://github.com/brendenlake/omniglot.
    """
    refuse_unknown("rotations", rotations, ROTATIONS)
    root = Path(path)
    with ExitStack() as open_files:
        characters = _by_character(_find(root, open_files), root)
        pictures = [drawing.picture for drawings in characters.values() for drawing in drawings]
        # One thread: several take turns at the interpreter's lock with pictures this small, and take 1.4 times as long.
        # They would also miscount who still reads from one archive.
        pixels = decode(pictures, size=size, channels=1, resample=resample, source=root, inverted=invert, threads=1)
    classes = [
        ImageClass(name, pixels[DRAWINGS * place : DRAWINGS * (place + 1)], part=drawings[0].part)
        for place, (name, drawings) in enumerate(characters.items())
    ]
    parts = sorted({drawings[0].part for drawings in characters.values()} - {""})
    upright = ClassSet(
        classes,
        description={"source": "omniglot", "parts": parts, "size": size, "resample": resample, "inverted": invert},
    )
    return upright.rotated() if rotations == "classes" else upright


def _find(root: Path, open_files: ExitStack) -> list[_Drawing]:
    if root.is_file():
        return _in_zip(root, _FOLDERS.get(root.stem, ""), open_files)
    if not root.is_dir():
        raise DataError(f"{root} does not exist\n  fix: a folder with {LAYOUT}")
    drawings: list[_Drawing] = []
    missing: list[str] = []
    for folder, part in _FOLDERS.items():
        archive, unpacked = root / f"{folder}.zip", root / folder
        if archive.is_file():
            drawings += _in_zip(archive, part, open_files)
        elif unpacked.is_dir():
            drawings += _in_folder(unpacked, part)
        else:
            missing.append(folder)
    if len(missing) == 1:
        there = next(folder for folder in _FOLDERS if folder not in missing)
        raise DataError(
            f"{root} has {there} but neither {missing[0]}.zip nor a folder {missing[0]}\n"
            f"  fix: put it there; to use one part alone, give its own path: {root / there}[.zip]"
        )
    return drawings if not missing else _in_folder(root, _FOLDERS.get(root.name, ""))


def _in_zip(path: Path, part: str, open_files: ExitStack) -> list[_Drawing]:
    try:
        archive = open_files.enter_context(zipfile.ZipFile(path))
    except MemoryError:
        raise
    except Exception as error:
        # A damaged directory raises BadZipFile, struct.error, ValueError, or OSError for a place before the file.
        if isinstance(error, OSError) and error.errno not in {None, errno.EINVAL}:
            raise DataError(f"{path} cannot be read: {error.strerror}\n  fix: make it readable") from error
        raise CorruptData(
            f"{path} is no zip archive, or its end is missing: {error} ({path.stat().st_size:,} bytes)\n"
            "  fix: fetch it again"
        ) from error
    drawings: list[_Drawing] = []
    for info in archive.infolist():
        place = None if info.is_dir() else _place(PurePosixPath(info.filename), part, path)
        if place is None:
            continue
        where = f"{path.name}: {info.filename}"
        if info.flag_bits & _ENCRYPTED or info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            # Python's other decompressors unpack a whole entry at once, whatever it grows to.
            how = "encrypted" if info.flag_bits & _ENCRYPTED else f"packed by method {info.compress_type}"
            raise DataError(f"{path}: the entry {printable(info.filename)} is {how}\n  fix: the archive as published")
        drawings.append(_Drawing(*place, Picture(where, partial(_read_entry, archive, info))))
    return drawings


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > _MOST_BYTES:
        raise ValueError(f"unpacks to {info.file_size:,} bytes, more than {_MOST_BYTES:,}")
    return archive.read(info)


def _in_folder(folder: Path, part: str) -> list[_Drawing]:
    drawings: list[_Drawing] = []
    # Three levels and no more, so that a link to a folder above cannot lead round in circles.
    level = [folder]
    for _ in range(3):
        level = [path for each in level if each.is_dir() for path in _entries(each)]
        for path in level:
            inside = PurePosixPath(path.relative_to(folder).as_posix())
            place = None if path.is_dir() else _place(inside, part, folder)
            if place is not None:
                drawings.append(_Drawing(*place, Picture(str(inside), partial(read_bounded, path, _MOST_BYTES))))
    return drawings


def _entries(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if not name.startswith(_PASSED_OVER)]
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be listed: {error.strerror}\n  fix: make it readable") from error


def _place(inside: PurePosixPath, part: str, source: Path) -> tuple[str, str, str] | None:
    """Which character a path belongs to, its name there, and its part; nothing for what is no drawing."""
    if inside.suffix.lower() != ".png" or any(token.startswith(_PASSED_OVER) for token in inside.parts):
        return None
    if len(inside.parts) < 3:
        raise DataError(
            f"{source}: the drawing {printable(str(inside))} lies in no folder of a character\n  expected: {LAYOUT}\n"
            "  fix: move it, or remove it"
        )
    alphabet, character, name = inside.parts[-3:]
    own = [_FOLDERS[token] for token in inside.parts[:-3] if token in _FOLDERS]
    return f"{alphabet}/{character}", name, own[0] if own else part


def _by_character(drawings: Sequence[_Drawing], root: Path) -> dict[str, list[_Drawing]]:
    """The drawings of each character, both sorted."""
    if not drawings:
        raise DataError(f"{root} has no drawings\n  expected: {LAYOUT}\n  fix: the folder that holds them")
    found: dict[str, list[_Drawing]] = {}
    for drawing in sorted(drawings, key=lambda each: each[:3]):
        found.setdefault(drawing.character, []).append(drawing)
    twice = [name for name, several in found.items() if len({each.part for each in several}) > 1]
    if twice:
        raise DataError(f"{len(twice)} characters of {root} are in both parts: {name_some(twice)}\n  fix: remove one")
    odd = [f"{name} ({len(several)})" for name, several in found.items() if len(several) != DRAWINGS]
    if odd:
        raise DataError(
            f"{len(odd)} of {len(found)} characters in {root} have not {DRAWINGS} drawings: {name_some(odd)}\n"
            "  fix: fetch the data again, or load them by meta.image_folder, which takes any number"
        )
    return found
