"""Pictures decoded into one tensor: in threads, bounded in size, and every damaged one named.

Knows encoded bytes and pixels; knows nothing of classes, and of files only how to read one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from frostline.errors import CorruptData, DataError, MissingExtra, printable
from frostline.extras import require
from frostline.meta.classes import WHITE, refuse_unknown

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
RESAMPLES = ("nearest", "box", "bilinear", "bicubic", "lanczos")
# Only these: Pillow would hand a PostScript file that is named .png to an interpreter.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
# A file of a kilobyte can unpack to gigabytes of pixels.
_MOST_PIXELS = 2**26
_MOST_NAMES = 8
_DEEPEST = 2**16 - 1
# So many pictures are one piece of work: handing over a small one takes as long as decoding it.
_PIECE = 64


class Picture(NamedTuple):
    """A picture that is still encoded.

    Attributes:
        where: its path, for messages.
        read: gives its bytes.
    """

    where: str
    read: Callable[[], bytes]


def decode(
    pictures: Sequence[Picture],
    *,
    size: int,
    channels: int,
    resample: str,
    source: object,
    inverted: bool = False,
    threads: int | None = None,
) -> Tensor:
    """Decode pictures, resize each so that its shorter side fits, and keep the square in the middle.

    Only the square is computed, as a part of the whole: the filter sees what lies beside it. Of an animation it is the
    first frame; transparency is dropped; the orientation that a camera noted is not applied; 16 bits become 8. No
    warning of a decoder leaves this function.

    Args:
        pictures: in the order of the result.
        size: height and width of the result in pixels.
        channels: 1 for grey, 3 for colours.
        resample: which filter resizes: one of :data:`RESAMPLES`.
        source: where they come from, for messages.
        inverted: black becomes white, after resizing.
        threads: how many decode; one for each core by default, 8 at most.

    Returns:
        uint8, shape (N, channels, size, size).

    Raises:
        MissingExtra: Pillow is not installed.
        DataError: a setting has no such value.
        CorruptData: pictures cannot be decoded; the first eight are named, each with the reason.
    """
    image_module: Any = require("PIL.Image", extra="train", purpose="Reading images")
    refuse_unknown("resample", resample, RESAMPLES)
    refuse_unknown("channels", channels, (1, 3))
    if size < 1:
        raise DataError(f"size is {size}\n  fix: a number of pixels, at least 1")
    image_module.init()
    mode, kernel = ("L" if channels == 1 else "RGB"), image_module.Resampling[resample.upper()]
    pixels = np.empty((len(pictures), channels, size, size), dtype=np.uint8)
    damaged: list[tuple[int, str]] = []

    def decode_piece(start: int) -> None:
        for place in range(start, min(start + _PIECE, len(pictures))):
            content = b""
            try:
                content = pictures[place].read()
                values = np.asarray(_resized(image_module, content, mode, size, kernel))
            except (MemoryError, MissingExtra):
                raise
            except Exception as error:  # a decoder raises anything on damaged bytes: OSError, SyntaxError, zlib.error
                damaged.append((place, _reason(content, error)))
                continue
            pixels[place] = values if channels == 1 else values.transpose(2, 0, 1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(max_workers=threads or min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(decode_piece, range(0, len(pictures), _PIECE)):
                pass
    if damaged:
        lines = [f"{printable(pictures[place].where)}: {reason}" for place, reason in sorted(damaged)]
        rest = [f"(+{len(lines) - _MOST_NAMES} more)"] if len(lines) > _MOST_NAMES else []
        raise CorruptData(
            f"{len(lines)} of {len(pictures)} images in {source} cannot be read\n  "
            + "\n  ".join(lines[:_MOST_NAMES] + rest)
            + "\n  fix: restore them, or fetch the data again"
        )
    if inverted:
        np.subtract(WHITE, pixels, out=pixels)
    return torch.from_numpy(pixels)


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is longer.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"more than {most:,} bytes")
    return content


def _resized(image_module: Any, content: bytes, mode: str, size: int, kernel: Any) -> Any:
    with image_module.open(BytesIO(content), formats=_FORMATS) as image:
        width, height = image.size
        if width * height > _MOST_PIXELS:
            raise ValueError(f"{width:,} x {height:,} pixels, more than {_MOST_PIXELS:,}")
        plain = _plain(image_module, image, mode)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return plain.resize((size, size), kernel, box=(left, top, left + side, top + side))


def _plain(image_module: Any, image: Any, mode: str) -> Any:
    if image.mode == "F":
        raise ValueError("floating values, whose range is not known")
    if image.mode.startswith("I"):
        # Pillow's own conversion makes every value above 255 white.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > _DEEPEST:
            raise ValueError("values beyond 16 bits")
        image = image_module.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        # Pillow warns of a palette with transparency that is converted directly.
        image = image.convert("RGBA")
    return image.convert(mode)


def _reason(content: bytes, error: Exception) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        return "not an image" if content else "empty file"
    text = str(getattr(error, "strerror", None) or error)
    return printable((text.splitlines() or [type(error).__name__])[0])
