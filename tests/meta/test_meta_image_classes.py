"""Any folder of images as classes."""

from __future__ import annotations

import os
import random
import typing
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from frostline.errors import CorruptData, DataError
from frostline.meta import image_classes
from frostline.meta.image_classes import image_folder
from frostline.meta.splits import Splits
from frostline.meta.tasks import Tasks

PACS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "pacs"


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(path)


def folder_of(root: Path, names: list[str], images: int = 3) -> Path:
    for name in names:
        for i in range(images):
            draw(root / name / f"{i}.png", seed=hash_free(name) + i)
    return root


def hash_free(name: str) -> int:
    return sum(map(ord, name)) * 10


def test_classes_are_paths_below_the_folder(tmp_path: Path):
    root = folder_of(tmp_path, ["wasp", "birds/owl", "birds/night/nightjar", "ant"])
    class_set = image_folder(root, size=6)
    assert class_set.names == ("ant", "birds/night/nightjar", "birds/owl", "wasp")
    assert class_set.shape == (3, 6, 6)
    expected = Image.open(root / "ant" / "1.png").resize((8, 6), Image.Resampling.BILINEAR).crop((1, 0, 7, 6))
    values = torch.from_numpy(np.array(expected)).permute(2, 0, 1).float() / 255
    assert torch.equal(class_set.images("ant", [1])[0], values)
    facts = class_set.describe()
    assert (facts["source"], facts["size"], facts["resample"]) == (f"image folder {root.name}", 6, "bilinear")


def test_classes_of_one_parent_stay_in_one_split(tmp_path: Path):
    root = folder_of(tmp_path, ["birds/owl", "birds/gull", "ants/red", "ants/black", "moth"], images=1)
    by_parent = image_folder(root, size=4, channels=1, groups="parent")
    assert by_parent.members == {
        "ants": ("ants/black", "ants/red"), "birds": ("birds/gull", "birds/owl"), "moth": ("moth",),
    }  # fmt: skip
    assert {"birds/owl", "birds/gull"} in [
        set(c) for c in Splits.draw(by_parent, {"a": 1, "b": 1, "c": 1}).classes.values()
    ]
    assert image_folder(root, size=4).group("birds/owl") == "birds/owl"


def test_the_order_in_which_folders_are_listed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = folder_of(tmp_path, ["c", "a", "b/y", "b/x"])

    def drawn() -> tuple[object, ...]:
        class_set = image_folder(root, size=4)
        splits = Splits.draw(class_set, {"train": 2, "test": 2})
        task = Tasks(class_set, way=2, shot=1, queries=2, splits=splits).task("train", 0)
        return class_set.digest, splits, task.classes, task.query.inputs.tolist()

    def naive() -> list[str]:
        return [name for folder, _, names in os.walk(root) for name in names]

    expected, walked, listed, scanned = drawn(), naive(), os.listdir, os.scandir
    for seed in range(3):
        shuffle = random.Random(seed)

        class Shuffled(list):  # what os.walk wants of os.scandir
            def __enter__(self):
                return iter(self)

            def __exit__(self, *_):
                pass

            def __next__(self):
                if not self:
                    raise StopIteration
                return self.pop(0)

        def shuffled_list(path, shuffle=shuffle):
            return shuffle.sample(names := listed(path), len(names))

        def shuffled_scan(path, shuffle=shuffle, kind=Shuffled):
            return kind(shuffle.sample(entries := list(scanned(path)), len(entries)))

        with monkeypatch.context() as patched:
            patched.setattr(image_classes.os, "listdir", shuffled_list)
            patched.setattr(os, "scandir", shuffled_scan)
            assert drawn() == expected
            assert naive() != walked  # Twin: what the examples walk over


def test_accents_are_the_same_however_a_file_system_writes_them(tmp_path: Path):
    digests: list[str] = []
    for form in ("NFC", "NFD"):
        root = folder_of(tmp_path / form, [])
        for seed, name in enumerate(("\u00e9t\u00e9", "f")):
            draw(root / unicodedata.normalize(form, name) / unicodedata.normalize(form, "\u00e9.png"), seed)
            draw(root / unicodedata.normalize(form, name) / "f.png", seed + 5)
        digests.append(image_folder(root, size=4).digest)
    assert digests[0] == digests[1]
    draw(root / "\u00e9t\u00e9" / "x.png", 9)
    if len(os.listdir(root)) == 3:  # a file system that tells the two apart
        with pytest.raises(DataError, match="has two folders that read 'été'"):
            image_folder(root, size=4)


def test_hidden_entries_and_other_files_are_passed_over(tmp_path: Path):
    root = folder_of(tmp_path, ["a", "b"])
    digest = image_folder(root, size=4).digest
    for name in ("a/.DS_Store", "a/._0.png", "a/notes.txt", "__MACOSX/a/._0.png", ".git/x.png", "empty/readme.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("no image")
    assert image_folder(root, size=4).digest == digest


def test_damaged_images_are_named(tmp_path: Path):
    root = folder_of(tmp_path, ["a", "b/c"])
    (root / "b/c/1.png").write_bytes((root / "b/c/1.png").read_bytes()[:100])
    (root / "a/0.png").write_bytes(b"")
    (root / "a/9.png").symlink_to(root / "nowhere.png")
    with pytest.raises(CorruptData) as caught:
        image_folder(root, size=4)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"3 of 7 images in {root} cannot be read"
    assert lines[1:3] == ["  a/0.png: empty file", "  a/9.png: No such file or directory"]
    assert lines[3].startswith("  b/c/1.png: ")


def test_files_that_grow_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = folder_of(tmp_path, ["a"])
    monkeypatch.setattr(image_classes, "_MOST_BYTES", 100)
    with pytest.raises(CorruptData, match=r"a/0\.png: more than 100 bytes"):
        image_folder(root, size=4)


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist"):
        image_folder(tmp_path / "absent", size=4)
    draw(tmp_path / "file.png", 0)
    with pytest.raises(DataError, match="is a file, not a folder"):
        image_folder(tmp_path / "file.png", size=4)
    with pytest.raises(DataError, match=r"1 images of .* lie in no class folder: file\.png"):
        image_folder(tmp_path, size=4)
    (tmp_path / "empty" / "inner").mkdir(parents=True)
    with pytest.raises(DataError, match="no images in class folders"):
        image_folder(tmp_path / "empty", size=4)
    root = folder_of(tmp_path / "mixed", ["a", "a/b"])
    with pytest.raises(DataError, match=r"3 images of .*a lie beside folders of images, beside b: 0.png"):
        image_folder(root, size=4)
    with pytest.raises(DataError, match="groups is 'none'"):
        image_folder(root, size=4, groups=typing.cast("typing.Any", "none"))


def test_links_may_lead_to_classes_but_not_in_circles(tmp_path: Path):
    real = folder_of(tmp_path / "real", ["a", "b"])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "x").symlink_to(real / "a", target_is_directory=True)
    assert image_folder(tmp_path / "linked", size=4).names == ("x",)
    (real / "b" / "up").symlink_to(real, target_is_directory=True)
    with pytest.raises(DataError, match=r"up leads back to .*real, above it"):
        image_folder(real, size=4)


@pytest.mark.real_data
@pytest.mark.skipif(not PACS.is_dir(), reason=f"NO REAL DATA: {PACS} is absent")
def test_photographs_of_four_domains():
    class_set = image_folder(PACS, size=20, groups="parent")
    assert (len(class_set), len(class_set.members)) == (28, 4)
    assert all(class_set.count(name) == 40 for name in class_set.names)
    means = torch.stack([class_set.images(name).mean() for name in class_set.names])
    assert means.min() > 0.1
    assert {name.partition("/")[0] for name in class_set.names[means.argmax() :][:1]} == {"sketch"}
