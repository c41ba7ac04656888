"""Omniglot from archives and folders: the real thing, every order of entries, and every kind of damage."""

from __future__ import annotations

import io
import os
import random
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from frostline.errors import CorruptData, DataError
from frostline.meta.classes import ClassSet
from frostline.meta.omniglot import omniglot
from frostline.meta.splits import Splits
from frostline.meta.tasks import Tasks

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "omniglot"
real = pytest.mark.skipif(not REAL.is_dir(), reason=f"NO REAL DATA: {REAL} is absent")
CHARACTERS = {
    "background": ("Latin/character01", "Latin/character02", "Greek/character01"),
    "evaluation": ("Manipuri/character01",),
}


@cache
def drawing(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 2, (21, 21), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels * 255).convert("1").save(file, "png")
    return file.getvalue()


def entries(part: str, prefix: str = "") -> dict[str, bytes]:
    return {
        f"{prefix}{character}/{number:04d}_{i:02d}.png": drawing(100 * number + i)
        for number, character in enumerate(CHARACTERS[part], start=1000 * (part == "evaluation"))
        for i in range(20)
    }


def archive(path: Path, content: dict[str, bytes], order: random.Random | None = None, method: int = 0) -> Path:
    names = list(content)
    if order is not None:
        order.shuffle(names)
    with zipfile.ZipFile(path, "w", method) as file:
        for name in names:
            file.writestr(zipfile.ZipInfo(name), content[name], method)
    return path


def archives(root: Path, order: random.Random | None = None) -> Path:
    root.mkdir(exist_ok=True)
    for part in CHARACTERS:
        archive(root / f"images_{part}.zip", entries(part, f"images_{part}/"), order)
    return root


def unpacked(root: Path, content: dict[str, bytes]) -> Path:
    for name, drawn in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawn)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return archives(tmp_path / "omniglot")


def small(path: Path) -> ClassSet:
    return omniglot(path, size=7, rotations="none")


# What is loaded


def test_drawings_are_resized_and_inverted_as_said(root: Path):
    class_set = small(root)
    assert class_set.names == tuple(sorted(name for names in CHARACTERS.values() for name in names))
    for i in range(20):
        image = Image.open(io.BytesIO(drawing(100 + i))).convert("L").resize((7, 7), Image.Resampling.LANCZOS)
        expected = (255 - torch.from_numpy(np.array(image))).float() / 255
        assert torch.equal(class_set.images("Latin/character02", [i])[0, 0], expected)
    plain = omniglot(root, size=21, invert=False, resample="nearest", rotations="none")
    assert set(plain.images("Greek/character01").unique().tolist()) == {0.0, 1.0}
    strokes = omniglot(root, size=21, rotations="none").images("Greek/character01")
    assert torch.equal(strokes, 1 - plain.images("Greek/character01"))
    assert plain.describe() | {"digest": ""} == {
        "source": "omniglot", "parts": ["background", "evaluation"], "size": 21, "resample": "nearest",
        "inverted": False, "rotations": "none", "classes": 4, "groups": 4, "images": 80, "shape": [1, 21, 21],
        "digest": "",
    }  # fmt: skip


def test_rotations_are_classes_by_default(root: Path):
    class_set = omniglot(root, size=7)
    upright = small(root)
    assert len(class_set) == 16
    for turns, name in enumerate(class_set.members["Latin/character01"]):
        assert torch.equal(class_set.images(name), upright.images("Latin/character01").rot90(turns, (2, 3)))
    assert class_set.describe()["rotations"] == "classes"


def test_archives_folders_and_each_part_alone_give_the_same(root: Path, tmp_path: Path):
    expected = small(root)
    both = unpacked(
        unpacked(tmp_path / "both", entries("background", "images_background/")),
        entries("evaluation", "images_evaluation/"),
    )
    assert small(both).digest == expected.digest
    assert Splits.by_zip(small(both)).classes == Splits.by_zip(expected).classes
    half = archives(tmp_path / "half")
    (half / "images_background.zip").unlink()
    unpacked(half, entries("background", "images_background/"))
    assert small(half).digest == expected.digest
    flat = unpacked(unpacked(tmp_path / "flat", entries("background")), entries("evaluation"))
    assert small(flat).digest == expected.digest
    background = small(root / "images_background.zip")
    assert background.names == tuple(sorted(CHARACTERS["background"]))
    assert background.part("Latin/character01") == "background"
    assert small(both / "images_background").digest == background.digest
    assert small(both / "images_background").part("Latin/character01") == "background"
    renamed = archive(tmp_path / "mine.zip", entries("background", "images_background/"), method=zipfile.ZIP_DEFLATED)
    assert small(renamed).digest == background.digest


def test_entries_of_macos_and_other_files_are_passed_over(root: Path):
    expected = small(root).digest
    with zipfile.ZipFile(root / "images_background.zip", "a") as file:
        for name in (
            "__MACOSX/images_background/Latin/character01/._0000_00.png",
            "images_background/Latin/character01/._0000_00.png",
            "images_background/.DS_Store",
            "images_background/Latin/character01/Thumbs.db",
            "images_background/Latin/character01/",
            "README.md",
        ):
            file.writestr(name, b"")
    assert small(root).digest == expected
    folder = unpacked(unpacked(root / "flat", entries("background")), entries("evaluation"))
    for name in ("Latin/character01/._x.png", "__MACOSX/Latin/character01/0.png", ".git/a/b.png", "readme.txt"):
        unpacked(folder, {name: b""})
    assert small(folder).digest == expected


@settings(max_examples=15)
@given(st.randoms(use_true_random=False))
def test_the_order_of_entries_does_not_count(tmp_path_factory: pytest.TempPathFactory, order: random.Random):
    folder = tmp_path_factory.mktemp("order")

    def drawn(root: Path) -> tuple[object, ...]:
        class_set = small(root)
        splits = Splits.draw(class_set, {"train": 2, "test": 2}, seed=1)
        task = Tasks(class_set, way=2, shot=1, queries=3, splits=splits).task("train", 4)
        return class_set.digest, splits, task.classes, task.query.inputs.tolist()

    assert drawn(archives(folder / "a", order)) == drawn(archives(folder / "b"))


def test_the_naive_way_depends_on_the_order_of_entries(tmp_path: Path):
    # Twin: classes as they come, and random.shuffle, as in the examples of higher and learn2learn.
    def naive(root: Path) -> list[str]:
        with zipfile.ZipFile(root / "images_background.zip") as file:
            classes = list(dict.fromkeys(name.rpartition("/")[0] for name in file.namelist()))
        random.Random(0).shuffle(classes)
        return classes

    shuffled = [naive(archives(tmp_path / str(seed), random.Random(seed))) for seed in range(5)]
    assert len(set(map(tuple, shuffled))) > 1


def test_the_order_in_which_folders_are_listed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = unpacked(unpacked(tmp_path, entries("background")), entries("evaluation"))
    expected, listed = small(root).digest, os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listed(path), reverse=True))
    assert small(root).digest == expected
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listed(path)))
    assert small(root).digest == expected


# What is refused


def outcome(path: Path) -> ClassSet | DataError:
    try:
        return small(path)
    except DataError as error:
        return error


def refused(error: type[DataError], path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        small(path)
    assert type(caught.value) is error, caught.value
    assert caught.value.exit_code == (3 if error is CorruptData else 2)
    for each in words:
        assert each in str(caught.value)


def test_absent_paths_and_folders_without_drawings(tmp_path: Path):
    refused(DataError, tmp_path / "absent", "absent does not exist")
    refused(DataError, tmp_path, "has no drawings", "images_background.zip and images_evaluation.zip")
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("x")
    refused(DataError, tmp_path, "has no drawings")
    refused(DataError, archive(tmp_path / "x.zip", {"a/b/c.txt": b"x"}), "x.zip has no drawings")
    refused(DataError, archive(tmp_path / "empty.zip", {}), "empty.zip has no drawings")
    refused(CorruptData, tmp_path / "notes.txt", "notes.txt is no zip archive")


@pytest.mark.parametrize("part", ["background", "evaluation"])
def test_one_part_alone_is_no_whole(root: Path, part: str):
    (root / f"images_{part}.zip").unlink()
    refused(DataError, root, f"neither images_{part}.zip nor a folder images_{part}", "give its own path")


def test_a_character_with_other_than_twenty_drawings_is_named(tmp_path: Path):
    for change, count in (
        (lambda c: c.pop("Latin/character02/0001_07.png"), 19),
        (lambda c: c.update({"Latin/character02/x.png": drawing(3)}), 21),
    ):
        content = entries("background")
        change(content)
        words = f"1 of 3 characters in {tmp_path / 'a.zip'} have not 20 drawings: Latin/character02 ({count})"
        refused(DataError, archive(tmp_path / "a.zip", content), words)


def test_a_character_in_both_parts_is_named(root: Path):
    archive(root / "images_evaluation.zip", entries("background", "images_evaluation/"))
    refused(DataError, root, "3 characters of", "are in both parts: Greek/character01")


def test_a_drawing_in_no_folder_of_a_character_is_named(tmp_path: Path):
    for name in ("stray.png", "Latin/stray.png"):
        refused(
            DataError,
            archive(tmp_path / "a.zip", {**entries("background"), name: drawing(0)}),
            f"drawing {name} lies in no folder",
        )
        refused(
            DataError,
            unpacked(tmp_path / name.replace("/", "_"), {name: drawing(0)}),
            f"drawing {name} lies in no folder",
        )


def test_archives_that_are_none_or_cut_off(root: Path):
    path = root / "images_background.zip"
    whole = path.read_bytes()
    for content in (b"", b"<html>404</html>", whole[: len(whole) // 2], whole[:-10], b"\0" * 1000):
        path.write_bytes(content)
        refused(
            CorruptData,
            root,
            "images_background.zip is no zip archive, or its end is missing",
            f"{len(content):,} bytes",
        )


def test_damaged_drawings_are_named_in_archives_and_folders(tmp_path: Path):
    content = entries("background")
    content["Latin/character01/0000_03.png"] = drawing(3)[:50]
    content["Greek/character01/0002_00.png"] = b""
    words = ("2 of 60 images", "Greek/character01/0002_00.png: empty file", "Latin/character01/0000_03.png: ")
    refused(CorruptData, archive(tmp_path / "a.zip", content), "a.zip: Greek", *words)
    refused(CorruptData, unpacked(tmp_path / "a", content), *words)


def test_a_flipped_byte_is_found_by_the_checksum_of_the_archive(tmp_path: Path):
    path = archive(tmp_path / "a.zip", entries("background"))
    content = bytearray(path.read_bytes())
    content[content.index(drawing(105)) + 60] ^= 1
    path.write_bytes(content)
    refused(CorruptData, path, "1 of 60 images", "Latin/character02/0001_05.png: Bad CRC-32")


@settings(max_examples=150)
@given(place=st.integers(0, 10**9), flip=st.integers(1, 255), cut=st.booleans())
def test_damage_anywhere_is_refused_or_without_effect(
    tmp_path_factory: pytest.TempPathFactory, place: int, flip: int, cut: bool
):
    folder = tmp_path_factory.getbasetemp() / "anywhere"
    folder.mkdir(exist_ok=True)
    content = {name: drawn for name, drawn in entries("background").items() if name.startswith("Greek")}
    path = archive(folder / "a.zip", content, method=zipfile.ZIP_DEFLATED)
    expected = small(path)
    damaged = bytearray(path.read_bytes())
    place %= len(damaged)
    if cut:
        del damaged[place:]
    else:
        damaged[place] ^= flip
    path.write_bytes(damaged)
    found = outcome(path)
    if isinstance(found, DataError):
        assert str(path) in str(found)
    else:
        assert not cut
        assert found.digest == expected.digest


def with_header(change: Callable[[bytearray, int], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        content = bytearray(path.read_bytes())
        change(content, content.index(b"PK\x01\x02"))
        path.write_bytes(content)

    return apply


def encrypt(content: bytearray, entry: int) -> None:
    content[entry + 8] |= 1


def swell(content: bytearray, entry: int) -> None:
    content[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")


def test_encrypted_and_oddly_packed_entries_are_refused_unread(tmp_path: Path):
    path = archive(tmp_path / "a.zip", entries("background"))
    with_header(encrypt)(path)
    refused(DataError, path, "the entry Latin/character01/0000_00.png is encrypted")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = archive(tmp_path / "b.zip", entries("background"), method=method)
        refused(DataError, path, f"the entry Latin/character01/0000_00.png is packed by method {method}")


def test_entries_that_swell_are_bounded(tmp_path: Path):
    bomb = {**entries("background"), "Latin/character01/0000_00.png": b"\0" * 50_000_000}
    path = archive(tmp_path / "a.zip", bomb, method=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    refused(CorruptData, path, "0000_00.png: unpacks to 50,000,000 bytes, more than 1,048,576")
    path = archive(tmp_path / "b.zip", entries("background"), method=zipfile.ZIP_DEFLATED)
    with_header(swell)(path)
    refused(CorruptData, path, "0000_00.png: unpacks to 2,147,483,648 bytes")
    folder = unpacked(tmp_path / "folder", bomb)
    refused(CorruptData, folder, "Latin/character01/0000_00.png: more than 1,048,576 bytes")


def test_names_cannot_play_with_a_terminal(tmp_path: Path):
    content = {name.replace("Latin", "\x1b[31mLatin"): drawn for name, drawn in entries("background").items()}
    content.pop("\x1b[31mLatin/character01/0000_00.png")
    refused(DataError, archive(tmp_path / "a.zip", content), r"\x1b[31mLatin/character01 (19)")


def test_settings_without_such_a_value_are_refused(root: Path):
    for options, words in (
        ({"rotations": "all"}, "rotations is 'all'"),
        ({"resample": "sinc"}, "resample is 'sinc'"),
        ({"size": 0}, "size is 0"),
    ):
        with pytest.raises(DataError, match=words):
            omniglot(root, **options)


# The real thing


@pytest.fixture(scope="module")
def whole() -> ClassSet:
    return omniglot(REAL, rotations="none")


@real
@pytest.mark.real_data
def test_all_of_omniglot_is_there(whole: ClassSet):
    assert len(whole) == 1623
    assert sum(map(whole.count, whole.names)) == 32_460
    assert {whole.count(name) for name in whole.names} == {20}
    assert len({name.partition("/")[0] for name in whole.names}) == 50
    splits = Splits.by_zip(whole)
    assert {split: len(names) for split, names in splits.classes.items()} == {"background": 964, "evaluation": 659}
    alphabets = {split: {name.partition("/")[0] for name in names} for split, names in splits.classes.items()}
    assert {split: len(names) for split, names in alphabets.items()} == {"background": 30, "evaluation": 20}
    assert not alphabets["background"] & alphabets["evaluation"]


@real
@pytest.mark.real_data
def test_strokes_are_one_and_paper_is_zero(whole: ClassSet):
    images = torch.stack([whole.images(name) for name in whole.names[::40]])
    assert images.min() == 0
    assert images.max() == 1
    assert 0.03 < images.mean() < 0.2
    full = omniglot(REAL / "images_evaluation.zip", size=105, rotations="none")
    name = full.names[7]
    exact = full.images(name)
    assert set(exact.unique().tolist()) == {0.0, 1.0}
    assert exact.mean() < 0.2
    with zipfile.ZipFile(REAL / "images_evaluation.zip") as file:
        first = min(each for each in file.namelist() if f"/{name}/" in each)
        paper = torch.from_numpy(np.array(Image.open(io.BytesIO(file.read(first)))))
    assert torch.equal(exact[0, 0], (~paper).float())


@real
@pytest.mark.real_data
def test_the_published_sizes_of_a_split_can_be_drawn(whole: ClassSet):
    turned = whole.rotated()
    splits = Splits.draw(turned, {"train": 1100, "val": 100, "test": 423}, seed=0)
    assert {split: len(names) for split, names in splits.classes.items()} == {"train": 4400, "val": 400, "test": 1692}
    tasks = Tasks(turned, way=20, shot=1, queries=15, splits=splits)
    batch = tasks.batch("test", 0, 20)
    assert batch[0].query.inputs.shape == (300, 1, 28, 28)
    assert batch[0].support.inputs.max() == 1
    upright = Splits.draw(whole, {"train": 1100, "val": 100, "test": 423}, seed=0)
    assert set(upright.classes["test"]) == {name for name in splits.classes["test"] if "/rot" not in name}
