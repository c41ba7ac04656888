"""Splits of classes: named, disjoint, drawn the same everywhere, and stored with the data that they belong to.

Knows names, groups and digests; knows nothing of images or tasks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from operator import index as whole_number
from pathlib import Path
from typing import Any, cast

import xxhash

from frostline import durable
from frostline.errors import CorruptData, DataError, name_some, printable
from frostline.json_values import finite
from frostline.meta.classes import ClassSet
from frostline.meta.draws import Draws
from frostline.state.names import nearest

SCHEMA_VERSION = 1
REST = "rest"


@dataclass(frozen=True)
class Splits:
    """Which classes are for training, which for validation, which for the test.

    Made by :meth:`draw`, :meth:`by_zip`, :meth:`of` or :meth:`read`. No class is in two splits; where the class set is
    known, neither is a group: rotations of one character stay together.

    Attributes:
        classes: for each split the names of its classes, sorted.
        data: what the classes belong to, as :meth:`ClassSet.describe` tells it; empty if that was not said.
        made: how the splits were made, as JSON values.

    Raises:
        DataError: a class is in two splits, or a split is empty.

    Example:
        >>> from frostline.meta.digits_classes import digits
        >>> splits = Splits.draw(digits(), {"train": 6, "test": "rest"}, seed=0)
        >>> splits.classes["test"]
        ('0', '1', '4', '7')
        >>> Splits.of(train=["0", "1"], test=["1", "2"])
        Traceback (most recent call last):
        frostline.errors.DataError: 1 classes are in two splits: '1' (train, test)
          fix: each class in one split
    """

    classes: Mapping[str, tuple[str, ...]]
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    made: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not self.classes:
            raise DataError("there is no split\n  fix: at least one name with classes, such as train=[...]")
        classes = {split: tuple(sorted(names)) for split, names in self.classes.items()}
        object.__setattr__(self, "classes", classes)
        empty = [split for split, names in classes.items() if not names]
        if empty:
            raise DataError(f"splits without classes: {name_some(empty)}\n  fix: leave them out")
        owners: dict[str, list[str]] = {}
        for split, names in classes.items():
            for name in names:
                owners.setdefault(name, []).append(split)
        _refuse_shared(owners, "classes", "each class in one split")

    @classmethod
    def draw(cls, class_set: ClassSet, sizes: Mapping[str, int | float | str], *, seed: int = 0) -> Splits:
        """Draw splits at random, group by group: the rotations of a character count as one and stay together.

        The draw depends on the seed, the sizes in their order and the sorted names of the groups, and on nothing else:
        no directory order, no generator of a library, no version. ``{"train": 1100, "val": 100, "test": "rest"}`` of
        Omniglot has the sizes of learn2learn's split.

        The split of the example of ``higher`` cannot be had: it takes the first 1,200 characters in the order in which
        ``os.walk`` happened to list them, which differs from one file system to the next.

        Args:
            class_set: the classes to split.
            sizes: for each split a number of groups, or for all of them shares as floating numbers; one may be
                "rest". Groups that are left over are in no split.
            seed: any whole number.

        Raises:
            DataError: there are fewer groups than asked for, or a size is none.

        Example:
            >>> from frostline.meta.digits_classes import digits
            >>> drawn = Splits.draw(digits(), {"train": 0.6, "val": 0.2, "test": 0.2}, seed=1)
            >>> [len(names) for names in drawn.classes.values()]
            [6, 2, 2]
        """
        groups = list(class_set.members)
        seed, counts = whole_number(seed), _counts(sizes, len(groups))
        order = Draws("frostline.meta.splits", 1, seed, *groups).sample(len(groups), sum(counts.values()))
        classes: dict[str, tuple[str, ...]] = {}
        for split, count in counts.items():
            chosen, order = order[:count], order[count:]
            classes[split] = tuple(name for place in chosen for name in class_set.members[groups[place]])
        return cls(classes, class_set.describe(), {"by": "draw", "seed": seed, "sizes": dict(sizes)})

    @classmethod
    def by_zip(cls, class_set: ClassSet) -> Splits:
        """Split Omniglot as its authors did: "background" (30 alphabets) and "evaluation" (20 others).

        Harder than a split of characters at random: no alphabet is in both.

        Raises:
            DataError: the classes do not come from both parts.

        Source:
            Lake et al., "Human-level concept learning through probabilistic program induction", Science 350, 2015.
        """
        classes: dict[str, tuple[str, ...]] = {}
        for name in class_set.names:
            part = class_set.part(name)
            classes[part] = (*classes.get(part, ()), name)
        if "" in classes or len(classes) < 2:
            found = name_some([part or "none" for part in classes])
            raise DataError(
                f"{class_set!r} does not come from two archives\n  found parts: {found}\n"
                "  fix: meta.omniglot of the folder with both, or Splits.draw"
            )
        return cls(classes, class_set.describe(), {"by": "zip"})

    @classmethod
    def of(cls, class_set: ClassSet | None = None, /, **classes: Iterable[str]) -> Splits:
        """Take splits as they are given; classes that are in none are not used.

        Args:
            class_set: what they belong to. Without it, names and groups are checked when tasks are made.
            classes: for each split the names of its classes.

        Raises:
            DataError: a class is in two splits, or does not exist; a split is empty; a group is in two splits.

        Example:
            >>> Splits.of(train=["b", "a"], test=["c"]).classes
            {'train': ('a', 'b'), 'test': ('c',)}
        """
        alone = [split for split, names in classes.items() if isinstance(names, str)]
        if alone:  # its letters would be taken for names
            raise DataError(f"splits with a text instead of names: {name_some(alone)}\n  fix: a list of names")
        data = {} if class_set is None else class_set.describe()
        splits = cls({split: tuple(names) for split, names in classes.items()}, data, {"by": "hand"})
        if class_set is not None:
            splits.check(class_set)
        return splits

    def check(self, class_set: ClassSet) -> None:
        """Refuse a class set that these splits do not fit; nothing is changed.

        Raises:
            DataError: the splits belong to other data, name classes that do not exist (the nearest names are given),
                or put classes of one group into different splits.
        """
        unknown = [name for names in self.classes.values() for name in names if name not in class_set]
        facts = class_set.describe()
        if self.data and self.data.get("digest") != facts["digest"]:
            raise DataError(
                f"the splits belong to other data: digest {self.data.get('digest')}, here {facts['digest']}\n"
                f"  {_differences(self.data, facts)}; {len(unknown)} of their classes do not exist here\n"
                "  fix: the data as they were; to take the same names for these, Splits.of(class_set, **splits.classes)"
            )
        if unknown:
            near = nearest(unknown[0], class_set.names) or class_set.names
            raise DataError(
                f"{len(unknown)} classes do not exist: {name_some(unknown)}\n"
                f"  nearest names: {name_some(near, rest='class_set.names')}"
            )
        owners: dict[str, list[str]] = {}
        for split, names in self.classes.items():
            for group in dict.fromkeys(class_set.group(name) for name in names):
                owners.setdefault(group, []).append(split)
        _refuse_shared(owners, "groups", "all classes of a group in one split: rotations of one character, for example")

    @property
    def digest(self) -> str:
        """A hash of the names of the splits and of their classes: 32 hexadecimal digits."""
        rows = sorted((split, list(names)) for split, names in self.classes.items())
        return xxhash.xxh3_128_hexdigest(json.dumps(rows).encode())

    def describe(self) -> dict[str, Any]:
        """What a number that is measured on a split depends on, as JSON values: how it was made, sizes, digest.

        Example:
            >>> Splits.of(train=["a", "b"], test=["c"]).describe()
            {'made': {'by': 'hand'}, 'classes': {'train': 2, 'test': 1}, 'digest': '...'}
        """
        sizes = {split: len(names) for split, names in self.classes.items()}
        return finite({"made": self.made, "classes": sizes, "digest": self.digest})

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; :meth:`from_dict` reads it."""
        classes = {split: list(names) for split, names in self.classes.items()}
        return finite({"schema_version": SCHEMA_VERSION, "made": self.made, "data": self.data, "classes": classes})

    @classmethod
    def from_dict(cls, value: object, *, where: str = "the splits") -> Splits:
        """Make splits from what :meth:`to_dict` gave.

        Args:
            value: the JSON object.
            where: what it was read from, for messages.

        Raises:
            CorruptData: it is no such object.
            DataError: it is of another version, or its splits overlap.

        Example:
            >>> splits = Splits.of(train=["a"], test=["b"])
            >>> Splits.from_dict(splits.to_dict()) == splits
            True
        """
        stored = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        version = stored.get("schema_version")
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise DataError(
                f"{where} has schema version {version}, this version of frostline reads {SCHEMA_VERSION}\n"
                "  fix: the version of frostline that wrote it, or draw the splits again"
            )
        classes, data, made = (stored.get(key) for key in ("classes", "data", "made"))
        if version is None or not (isinstance(data, dict) and isinstance(made, dict) and _are_names(classes)):
            raise CorruptData(
                f"{where} holds no splits\n  expected: schema_version, made, data, and for each split its classes\n"
                "  fix: restore it, or draw the splits again"
            )
        named = cast("dict[str, list[str]]", classes)
        return cls({split: tuple(names) for split, names in named.items()}, data, made)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Store them as JSON, whole or not at all.

        Raises:
            StorageFull: there is no space; what was there before is kept.
            CannotWrite: it cannot be written for another reason.
        """
        target = Path(path)
        content = (json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode()
        with durable.told(target, len(content), "  kept: what was there before\n  fix: make room, and write again"):
            durable.replace_file(target, content)
        return target

    @classmethod
    def read(cls, path: str | os.PathLike[str], class_set: ClassSet | None = None) -> Splits:
        """Read splits that :meth:`write` stored.

        Args:
            path: the file.
            class_set: what they are wanted for; without it, this is checked when tasks are made.

        Raises:
            CorruptData: the file holds no splits.
            DataError: it cannot be read, is of another version, or belongs to other data.
        """
        source = Path(path)
        try:
            value = json.loads(source.read_bytes())
        except OSError as error:
            raise DataError(f"{source} cannot be read: {error.strerror}\n  fix: a file of Splits.write") from error
        except (ValueError, RecursionError) as error:
            raise CorruptData(
                f"{source} is no JSON: {printable(str(error))}\n  fix: restore it, or draw the splits again"
            ) from error
        splits = cls.from_dict(value, where=str(source))
        if class_set is not None:
            splits.check(class_set)
        return splits


def _counts(sizes: Mapping[str, int | float | str], groups: int) -> dict[str, int]:
    """How many groups each split gets."""
    numbers = {split: size for split, size in sizes.items() if not isinstance(size, str)}
    texts = {split: size for split, size in sizes.items() if isinstance(size, str)}
    kinds = {type(size) for size in numbers.values()}
    if not sizes or len(kinds) > 1 or not kinds <= {int, float} or len(texts) > 1 or set(texts.values()) - {REST}:
        raise DataError(
            f"the sizes of splits are {dict(sizes)}\n"
            f"  fix: numbers of groups, or shares as floating numbers; at most one of them {REST!r}"
        )
    if kinds == {float}:
        counts = _of_shares(cast("dict[str, float]", numbers), groups)
    else:
        counts = cast("dict[str, int]", numbers)
    left = groups - sum(counts.values())
    result = {split: counts.get(split, left) for split in sizes}
    if left < 0 or min(result.values()) < 1:
        raise DataError(
            f"{groups} groups of classes cannot be split into {dict(sizes)}, which is {result}\n"
            f"  fix: at least one for each split, and not more than {groups} in all"
        )
    return result


def _of_shares(shares: Mapping[str, float], groups: int) -> dict[str, int]:
    # As decimal fractions: the sum of 0.7, 0.2 and 0.1 is below 1 in binary. Rounding the ends of the splits, not
    # their sizes, makes the sizes add up.
    counts: dict[str, int] = {}
    total, begin = Fraction(0), 0
    for split, share in shares.items():
        if not 0 < share <= 1:
            raise DataError(f"the share of {split!r} is {share}\n  fix: a number above 0 and at most 1")
        total += Fraction(str(share))
        end = int(total * groups + Fraction(1, 2))
        counts[split], begin = end - begin, end
    return counts


def _refuse_shared(owners: Mapping[str, list[str]], what: str, fix: str) -> None:
    shared = [f"{name!r} ({', '.join(splits)})" for name, splits in owners.items() if len(splits) > 1]
    if shared:
        raise DataError(f"{len(shared)} {what} are in two splits: {name_some(shared)}\n  fix: {fix}")


def _are_names(classes: object) -> bool:
    if not isinstance(classes, dict):
        return False
    values = cast("dict[str, object]", classes).values()
    return all(
        isinstance(names, list) and all(isinstance(n, str) for n in cast("list[object]", names)) for names in values
    )


def _differences(stored: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Which facts about the data differ, in words."""
    keys = [key for key in {**stored, **facts} if key != "digest" and stored.get(key) != facts.get(key)]
    differing = [f"{key} {stored.get(key)!r}, here {facts.get(key)!r}" for key in keys]
    return name_some(differing) if differing else "all settings agree, their names or pixels do not"
