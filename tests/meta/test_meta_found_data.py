"""Which data a folder holds is found by looking, and the splits suffice for the tasks."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from frostline.errors import CorruptData, DataError
from frostline.meta import found_data
from frostline.meta.classes import ClassSet, ImageClass
from frostline.meta.found_data import load, splits_for
from frostline.meta.run_settings import MetaConfig
from frostline.meta.splits import Splits
from frostline.meta.tasks import Tasks


def picture(path: Path, size: int = 20) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size, size), dtype=np.uint8)).convert("1").save(path)


def alphabets(folder: Path, names: tuple[str, ...], characters: int = 2) -> Path:
    for name in names:
        for character in range(1, characters + 1):
            for drawing in range(20):
                picture(folder / name / f"character{character:02d}" / f"{drawing:02d}.png")
    return folder


def zipped(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*.png")):
            file.write(path, Path(archive.stem) / path.relative_to(folder))


@pytest.fixture
def omniglot_folder(tmp_path: Path) -> Path:
    root = tmp_path / "omniglot"
    root.mkdir()
    zipped(alphabets(tmp_path / "a", ("Latin",)), root / "images_background.zip")
    zipped(alphabets(tmp_path / "b", ("Greek",)), root / "images_evaluation.zip")
    return root


@pytest.mark.parametrize("form", ["archives", "unpacked", "alphabets", "one archive"])
def test_omniglot_is_found_in_every_form(form: str, tmp_path: Path, omniglot_folder: Path):
    place = omniglot_folder
    if form == "unpacked":
        place = tmp_path / "unpacked"
        for name, alphabet in (("images_background", "Latin"), ("images_evaluation", "Greek")):
            alphabets(place / name, (alphabet,))
    elif form == "alphabets":
        place = alphabets(tmp_path / "both", ("Latin", "Greek"))
    elif form == "one archive":
        place = omniglot_folder / "images_background.zip"
    found = load(MetaConfig(data=str(place), rotations="none"))
    count = 2 if form == "one archive" else 4
    assert found.said == f"Omniglot: {count} classes"
    assert found.class_set.shape == (1, 28, 28)


def test_settings_of_the_images_are_passed_on(omniglot_folder: Path):
    config = MetaConfig(data=str(omniglot_folder), size=14, resample="bicubic", invert=False)
    found = load(config)
    facts = found.class_set.describe()
    assert (facts["size"], facts["resample"], facts["inverted"], facts["rotations"]) == (
        14,
        "bicubic",
        False,
        "classes",
    )
    assert found.said == "Omniglot: 16 classes in 4 groups"


def test_anything_else_is_a_folder_of_images(tmp_path: Path):
    for name in ("ant", "bee"):
        picture(tmp_path / "photos" / name / "1.png")
    found = load(MetaConfig(data=str(tmp_path / "photos"), size=16))
    assert found.said == "image folder: 2 classes"
    assert found.class_set.shape == (3, 16, 16)


def test_what_cannot_be_read_says_why(tmp_path: Path, omniglot_folder: Path):
    with pytest.raises(DataError, match=r"--data .*nowhere: it does not exist"):
        load(MetaConfig(data=str(tmp_path / "nowhere")))
    (tmp_path / "file.tar").write_bytes(b"x")
    with pytest.raises(DataError, match="it is a file, and no archive of Omniglot"):
        load(MetaConfig(data=str(tmp_path / "file.tar")))
    archive = omniglot_folder / "images_background.zip"
    archive.write_bytes(archive.read_bytes()[:100])
    with pytest.raises(CorruptData, match=r"images_background\.zip is no zip archive") as caught:
        load(MetaConfig(data=str(omniglot_folder)))
    assert caught.value.exit_code == 3


def classes(groups: int, members: int, source: str = "test") -> ClassSet:
    import torch

    rows = [
        ImageClass(f"{group:04d}/{member}", torch.zeros(2, 1, 2, 2), group=f"{group:04d}")
        for group in range(groups)
        for member in range(members)
    ]
    return ClassSet(rows, description={"source": source})


@pytest.mark.parametrize("way", [2, 3, 5, 7])
@pytest.mark.parametrize(("groups", "members"), [(6, 1), (9, 1), (15, 1), (21, 1), (40, 1), (100, 1), (6, 4), (10, 4)])
def test_drawn_splits_suffice_for_the_tasks_or_say_so(way: int, groups: int, members: int):
    class_set = classes(groups, members)
    config = MetaConfig(way=way, queries=1)
    if groups < 3 * -(-way // members):
        with pytest.raises(DataError, match=f"found: {groups}") as caught:
            splits_for(config, class_set)
        # What the message proposes is possible.
        possible = int(str(caught.value).partition("--way ")[2].partition(",")[0])
        way = possible
        config = MetaConfig(way=way, queries=1)
    splits = splits_for(config, class_set)
    assert set(splits.classes) == {"train", "val", "test"}
    assert sum(map(len, splits.classes.values())) == groups * members
    assert len(splits.classes["train"]) >= len(splits.classes["test"])
    Tasks(class_set, way=way, shot=1, queries=1, splits=splits)


def test_too_few_classes_for_any_task():
    with pytest.raises(DataError, match="fix: more classes; or --splits FILE"):
        splits_for(MetaConfig(way=2), classes(5, 1))


def test_omniglot_is_split_as_learn2learn_does():
    splits = splits_for(MetaConfig(way=5), classes(1623, 1, source="omniglot"))
    assert {name: len(own) for name, own in splits.classes.items()} == {"train": 1100, "val": 100, "test": 423}


def test_splits_of_a_file_are_taken_as_they_are(tmp_path: Path):
    class_set = classes(6, 1)
    stored = Splits.of(class_set, train=class_set.names[:4], test=class_set.names[4:])
    stored.write(tmp_path / "splits.json")
    config = MetaConfig(way=2, splits=str(tmp_path / "splits.json"))
    assert splits_for(config, class_set).classes == stored.classes
    Splits.of(class_set, first=class_set.names[:4], test=class_set.names[4:]).write(tmp_path / "splits.json")
    with pytest.raises(DataError, match="has no split 'train'\n  found: first, test"):
        splits_for(config, class_set)
    with pytest.raises(DataError, match="belong to other data"):
        Splits.of(class_set, train=class_set.names[:4], test=class_set.names[4:]).write(tmp_path / "splits.json")
        splits_for(config, classes(6, 1, source="other").rotated())


def test_the_seed_decides_over_the_splits():
    one, same, other = (splits_for(MetaConfig(seed=seed), classes(30, 1)).classes for seed in (0, 0, 1))
    assert one == same != other


def test_without_a_folder_it_is_the_digits(monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []

    def digits(**options: Any) -> ClassSet:
        asked.append(options)
        return classes(10, 4)

    monkeypatch.setattr(found_data, "digits", digits)
    load(MetaConfig(rotations="none"))
    assert asked == [{"rotations": "none"}]
