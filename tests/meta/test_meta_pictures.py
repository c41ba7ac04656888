"""Pictures into one tensor: against Pillow and torchvision's arithmetic, and what damaged ones are told."""

from __future__ import annotations

import io
import struct
import sys
import typing
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from frostline.errors import CorruptData, DataError, MissingExtra
from frostline.meta.pictures import RESAMPLES, Picture, decode, read_bounded


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def decoded(*contents: bytes, size: int = 8, channels: int = 3, resample: str = "bilinear", **options) -> torch.Tensor:
    pictures = [Picture(f"picture {i}", lambda content=content: content) for i, content in enumerate(contents)]
    return decode(pictures, size=size, channels=channels, resample=resample, source="tests", **options)


def as_tensor(image: Image.Image) -> torch.Tensor:
    values = np.array(image)
    return torch.from_numpy(values[None] if values.ndim == 2 else values.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("resample", RESAMPLES)
def test_a_square_is_resized_as_pillow_does(resample: str):
    image = noise(21, 21)
    expected = image.resize((8, 8), Image.Resampling[resample.upper()])
    assert torch.equal(decoded(encoded(image), resample=resample)[0], as_tensor(expected))
    assert torch.equal(decoded(encoded(image), size=21, resample=resample)[0], as_tensor(image))


def test_of_the_longer_side_the_middle_is_kept():
    wide = noise(40, 20)
    middle = as_tensor(wide.resize((16, 8), Image.Resampling.BILINEAR).crop((4, 0, 12, 8)))
    assert torch.equal(decoded(encoded(wide))[0], middle)
    high = wide.transpose(Image.Transpose.TRANSPOSE)
    assert torch.equal(decoded(encoded(high))[0], middle.transpose(1, 2))
    squeezed = as_tensor(wide.resize((8, 8), Image.Resampling.BILINEAR))
    assert not torch.equal(squeezed, middle)


def test_order_is_kept_whatever_the_number_of_threads():
    contents = [encoded(noise(9, 9, seed)) for seed in range(150)]
    expected = torch.stack([as_tensor(noise(9, 9, seed)) for seed in range(150)])
    for threads in (1, 2, 7, None):
        assert torch.equal(decoded(*contents, size=9, threads=threads), expected)


def test_every_mode_becomes_grey_or_colours():
    grey = noise(8, 8).convert("L")
    for image in (
        grey,
        noise(8, 8),
        noise(8, 8).convert("RGBA"),
        grey.convert("LA"),
        grey.convert("1"),
        noise(8, 8).quantize(16),
    ):
        assert torch.equal(decoded(encoded(image), channels=1)[0], as_tensor(image.convert("L")))
        assert torch.equal(decoded(encoded(image))[0], as_tensor(image.convert("RGB")))
    transparent = Image.new("P", (8, 8), 3)
    transparent.putpalette([10, 20, 30] * 256)
    assert decoded(encoded(transparent, transparency=bytes(range(8))))[0, :, 0, 0].tolist() == [10, 20, 30]
    cmyk = noise(8, 8).convert("CMYK")
    assert torch.equal(decoded(encoded(cmyk, "tiff"))[0], as_tensor(cmyk.convert("RGB")))


def test_sixteen_bits_keep_their_shades():
    deep = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    values = decoded(encoded(Image.fromarray(deep)), channels=1)[0, 0]
    assert values.tolist() == np.round(deep / 257).astype(int).tolist()
    # Twin: Pillow's own conversion makes nearly all of it white.
    assert np.array(Image.open(io.BytesIO(encoded(Image.fromarray(deep)))).convert("L")).mean() > 240
    assert decoded(encoded(Image.fromarray(deep)))[0].shape == (3, 8, 8)


def test_inverted_is_done_after_resizing():
    image = noise(21, 21).convert("L")
    assert torch.equal(decoded(encoded(image), channels=1, inverted=True), 255 - decoded(encoded(image), channels=1))


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert decoded(content)[0, :, 0, 0].tolist() == [255, 0, 0]


def png_of(width: int, height: int) -> bytes:
    """The head of a picture that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_damaged_pictures_are_named_all_of_them():
    good = encoded(noise(8, 8))
    broken = bytearray(good)
    broken[60] ^= 0xFF

    def gone() -> bytes:
        raise FileNotFoundError(2, "No such file or directory", "path")

    pictures = [
        Picture("good", lambda: good),
        Picture("cut", lambda: good[:60]),
        Picture("flipped", lambda: bytes(broken)),
        Picture("empty", lambda: b""),
        Picture("text\x1b[31m", lambda: b"no picture"),
        Picture("postscript", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"),
        Picture("large", lambda: png_of(10_000, 10_000)),
        Picture("larger", lambda: png_of(30_000, 30_000)),
        Picture("gone", gone),
        Picture("floating", lambda: encoded(Image.new("F", (8, 8), 0.5), "tiff")),
    ]
    with pytest.raises(CorruptData) as caught:
        decode(pictures, size=8, channels=3, resample="box", source="tests")
    lines = str(caught.value).splitlines()
    assert lines[0] == "9 of 10 images in tests cannot be read"
    assert [line.split(":")[0].strip() for line in lines[1:9]] + [lines[9].strip()] == [
        "cut", "flipped", "empty", r"text\x1b[31m", "postscript", "large", "larger", "gone",
        "(+1 more)",
    ]  # fmt: skip
    assert "empty file" in lines[3]
    assert "not an image" in lines[4]
    assert "not an image" in lines[5]
    assert "10,000 x 10,000 pixels, more than 67,108,864" in lines[6]
    assert "900000000 pixels" in lines[7]
    assert lines[8].endswith("gone: No such file or directory")
    assert caught.value.exit_code == 3
    with pytest.raises(CorruptData, match="floating: floating values, whose range is not known"):
        decode(pictures[-1:], size=8, channels=3, resample="box", source="tests")


def test_settings_without_such_a_value_are_refused():
    with pytest.raises(DataError, match="resample is 'cubic'\n  fix: one of 'nearest', 'box', 'bilinear'"):
        decoded(resample="cubic")
    with pytest.raises(DataError, match="channels is 4\n  fix: one of 1, 3"):
        decoded(channels=4)
    with pytest.raises(DataError, match="size is 0"):
        decoded(size=0)


def test_memory_errors_are_not_taken_for_damage():
    def full() -> bytes:
        raise MemoryError

    with pytest.raises(MemoryError):
        decode([Picture("a", full)], size=8, channels=3, resample="box", source="tests")


def test_without_pillow_the_cure_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PIL", typing.cast("typing.Any", None))
    with pytest.raises(MissingExtra, match=r"Reading images needs .*\n.*frostline\[train\]"):
        decoded()


def test_files_are_read_up_to_a_limit(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bounded(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="more than 4 bytes"):
        read_bounded(tmp_path / "a", 4)
