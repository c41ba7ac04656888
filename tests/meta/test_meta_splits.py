"""Splits: disjoint, drawn by groups, independent of order, stored with their data; and the naive way."""

from __future__ import annotations

import errno
import json
import random
import shutil
import typing
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline import durable
from frostline.errors import CannotWrite, CorruptData, DataError, StorageFull
from frostline.meta.classes import ClassSet, ImageClass
from frostline.meta.splits import Splits


def classes(count: int, *, rotations: bool = False, order: list[int] | None = None, value: float = 0) -> ClassSet:
    images = torch.full((2, 1, 2, 2), float(value))
    upright = ClassSet(
        [ImageClass(f"c{i:03d}", images) for i in order or range(count)], description={"source": "tests"}
    )
    return upright.rotated() if rotations else upright


SIZES = st.dictionaries(
    st.sampled_from(["train", "val", "test", "more"]), st.integers(1, 6), min_size=1, max_size=4
).flatmap(lambda sizes: st.tuples(st.just(sizes), st.integers(sum(sizes.values()), 30)))


@given(SIZES, st.integers(-5, 5), st.booleans())
def test_no_class_and_no_group_is_in_two_splits(sizes_and_count, seed: int, rotations: bool):
    sizes, count = sizes_and_count
    class_set = classes(count, rotations=rotations)
    splits = Splits.draw(class_set, sizes, seed=seed)
    every = [name for names in splits.classes.values() for name in names]
    assert len(every) == len(set(every))
    assert set(every) <= set(class_set.names)
    groups = {split: {class_set.group(name) for name in names} for split, names in splits.classes.items()}
    assert {split: len(found) for split, found in groups.items()} == sizes
    assert sum(map(len, groups.values())) == len(set().union(*groups.values()))
    splits.check(class_set)


def test_splitting_by_class_would_tear_rotations_apart():
    # Twin: the same draw over class names, and the check that a group stays together fails.
    class_set = classes(10, rotations=True)
    names = random.Random(0).sample(class_set.names, len(class_set))
    with pytest.raises(DataError, match=r"groups are in two splits: 'c000' \(train, test\)"):
        Splits.of(class_set, train=names[:20], test=names[20:])


@given(st.permutations(range(12)))
def test_the_order_in_which_classes_were_found_does_not_count(order: list[int]):
    drawn = Splits.draw(classes(12, order=order), {"train": 7, "test": "rest"}, seed=3)
    assert drawn == Splits.draw(classes(12), {"train": 7, "test": "rest"}, seed=3)


def test_the_naive_way_depends_on_the_order():
    # Twin: what the examples do, a shuffle with a seed of what was listed.
    def naive(found: list[str]) -> set[str]:
        random.Random(0).shuffle(found)
        return set(found[:7])

    names = [f"c{i:03d}" for i in range(12)]
    assert naive(list(names)) == naive(list(names))
    assert naive(list(names)) != naive(names[::-1])


def test_golden_split():
    splits = Splits.draw(classes(9), {"train": 4, "val": 2, "test": "rest"}, seed=0)
    assert splits.classes == GOLDEN


def test_other_seeds_give_other_splits_and_each_class_is_as_likely():
    class_set = classes(8)
    trained = [Splits.draw(class_set, {"train": 4, "test": 4}, seed=seed).classes["train"] for seed in range(1600)]
    assert len(set(trained)) == 70  # of 8 classes, 4
    counts = Counter(name for names in trained for name in names)
    # 800 expected, standard deviation 20.
    assert all(abs(counts[name] - 800) < 100 for name in class_set.names)


def test_shares_are_decimal_and_add_up():
    class_set = classes(10)

    def sizes(**shares: float | str) -> list[int]:
        return [len(names) for names in Splits.draw(class_set, shares).classes.values()]

    assert sizes(train=0.7, val=0.2, test=0.1) == [7, 2, 1]
    assert sizes(train=0.34, val=0.33, test=0.33) == [3, 4, 3]
    assert sizes(train=0.25, test=0.25) == [3, 2]
    assert sizes(train=0.5, test="rest") == [5, 5]
    assert sizes(train=1.0) == [10]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"train": 8, "test": 3}, "10 groups of classes cannot be split into {'train': 8, 'test': 3}"),
        ({"train": 10, "test": "rest"}, "which is {'train': 10, 'test': 0}"),
        ({"train": 0, "test": 5}, "at least one for each split"),
        ({"train": -1, "test": "rest"}, "at least one for each split"),
        ({"train": 0.8, "test": 0.3}, "not more than 10 in all"),
        ({"train": 0.01, "test": "rest"}, "'train': 0"),
        ({"train": 1.5}, "the share of 'train' is 1.5"),
        ({"train": float("nan")}, "the share of 'train' is nan"),
        ({"train": 5, "test": 0.5}, "numbers of groups, or shares"),
        ({"train": True}, "numbers of groups, or shares"),
        ({"train": "rest", "test": "rest"}, "at most one of them 'rest'"),
        ({"train": "half"}, "numbers of groups, or shares"),
        ({}, "numbers of groups, or shares"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: dict[str, typing.Any], words: str):
    with pytest.raises(DataError) as caught:
        Splits.draw(classes(10), sizes)
    assert words in str(caught.value)


# By hand


def test_splits_by_hand_are_checked_against_their_classes():
    class_set = classes(6)
    splits = Splits.of(class_set, train=["c003", "c000"], test=["c001"])
    assert splits.classes == {"train": ("c000", "c003"), "test": ("c001",)}
    assert splits.data["digest"] == class_set.digest
    with pytest.raises(DataError, match=r"2 classes do not exist: c00, d001\n  nearest names: c00"):
        Splits.of(class_set, train=["c00", "c003"], test=["d001"])
    with pytest.raises(DataError, match=r"1 classes are in two splits: 'c001' \(train, test\)"):
        Splits.of(class_set, train=["c001", "c000"], test=["c001"])
    with pytest.raises(DataError, match=r"'c001' \(train, train\)"):
        Splits.of(class_set, train=["c001", "c001"])
    with pytest.raises(DataError, match="splits without classes: test"):
        Splits.of(class_set, train=["c001"], test=[])
    with pytest.raises(DataError, match="there is no split"):
        Splits.of(class_set)
    with pytest.raises(DataError, match="a text instead of names: train"):
        Splits.of(train="c001")


def test_many_overlapping_names_are_counted():
    names = [f"c{i:03d}" for i in range(12)]
    with pytest.raises(DataError, match=r"12 classes are in two splits: 'c000' .* \(\+4 more\)"):
        Splits.of(train=names, test=names)


def test_splits_by_zip_need_parts():
    images = torch.zeros(2, 1, 2, 2)
    parts = {"b": "background", "a": "evaluation", "c": "background"}
    class_set = ClassSet(
        [ImageClass(name, images, part=part) for name, part in parts.items()], description={}
    ).rotated()
    splits = Splits.by_zip(class_set)
    assert set(splits.classes) == {"background", "evaluation"}
    assert splits.classes["evaluation"] == ("a", "a/rot090", "a/rot180", "a/rot270")
    assert len(splits.classes["background"]) == 8
    with pytest.raises(DataError, match="found parts: none"):
        Splits.by_zip(classes(3))
    with pytest.raises(DataError, match="found parts: background"):
        Splits.by_zip(ClassSet([ImageClass("b", images, part="background")], description={}))


# Stored


@pytest.mark.parametrize("rotations", [False, True])
def test_what_is_written_is_read(tmp_path: Path, rotations: bool):
    class_set = classes(9, rotations=rotations)
    for splits in (
        Splits.draw(class_set, {"train": 0.5, "test": "rest"}, seed=4),
        Splits.of(class_set, train=["c000"], test=["c001"]),
        Splits.of(train=["ä", "\x1b[31m", "\udcff"], test=["c001"]),
    ):
        path = splits.write(tmp_path / "splits.json")
        again = Splits.read(path)
        assert again == splits
        assert again.digest == splits.digest
        assert again.describe() == splits.describe()
        assert json.loads(path.read_text())["schema_version"] == 1
    stored = Splits.draw(class_set, {"train": 4}, seed=4).write(tmp_path / "splits.json")
    assert Splits.read(stored, class_set).data == class_set.describe()


def test_splits_of_other_data_are_refused(tmp_path: Path):
    class_set, other = classes(9), classes(9, value=1)
    path = Splits.draw(class_set, {"train": 4}).write(tmp_path / "splits.json")
    with pytest.raises(DataError) as caught:
        Splits.read(path, other)
    for words in (class_set.digest, other.digest, "all settings agree", "0 of their classes do not exist"):
        assert words in str(caught.value)
    with pytest.raises(DataError, match=r"rotations 'none', here 'classes', classes 9, here 36"):
        Splits.read(path, classes(9, rotations=True))
    with pytest.raises(DataError, match=r"2 of their classes do not exist here"):
        Splits.of(class_set, train=["c007", "c008"]).check(classes(5))
    # The fix that the message names.
    moved = Splits.of(other, **Splits.read(path).classes)
    assert moved.classes == Splits.read(path, class_set).classes
    moved.check(other)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe\xfa",
        b"[" * 100_000,
        b"[]",
        b"{}",
        b"null",
        b'{"schema_version": 1}',
        b'{"schema_version": 1, "made": {}, "data": {}, "classes": ["a"]}',
        b'{"schema_version": 1, "made": {}, "data": {}, "classes": {"train": "abc"}}',
        b'{"schema_version": 1, "made": {}, "data": {}, "classes": {"train": [1]}}',
        b'{"schema_version": 1, "made": 0, "data": {}, "classes": {"train": ["a"]}}',
        b'{"schema_version": "1", "made": {}, "data": null, "classes": {"train": ["a"]}}',
    ],
)
def test_files_without_splits_are_corrupt(tmp_path: Path, content: bytes):
    path = tmp_path / "splits.json"
    path.write_bytes(content)
    with pytest.raises(CorruptData, match=r"splits\.json") as caught:
        Splits.read(path)
    assert caught.value.exit_code == 3


def test_files_that_cannot_be_used_are_told_from_corrupt_ones(tmp_path: Path):
    with pytest.raises(DataError, match="cannot be read: No such file") as caught:
        Splits.read(tmp_path / "absent.json")
    assert caught.value.exit_code == 2
    splits = Splits.of(train=["a"], test=["b"])
    for change, words in (({"schema_version": 2}, "schema version 2"), ({"classes": {"x": ["a"], "y": ["a"]}}, "'a'")):
        path = tmp_path / "changed.json"
        path.write_text(json.dumps({**splits.to_dict(), **change}))
        with pytest.raises(DataError, match=words) as caught:
            Splits.read(path)
        assert caught.value.exit_code == 2


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = Splits.of(train=["a"]).write(tmp_path / "splits.json")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(StorageFull, match=r"splits\.json"):
        Splits.of(train=["b"]).write(path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["splits.json"]


def test_a_folder_that_is_not_there_is_told(tmp_path: Path):
    shutil.rmtree(tmp_path)
    with pytest.raises(CannotWrite, match="a folder that exists"):
        Splits.of(train=["b"]).write(tmp_path / "splits.json")


GOLDEN = {
    "train": ("c002", "c003", "c006", "c008"),
    "val": ("c004", "c007"),
    "test": ("c000", "c001", "c005"),
}
