"""Few-shot tasks, drawn the same everywhere: a task is a function of its seed, its split and its index.

Knows classes, splits and numbers; knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from operator import index as whole_number
from typing import Any

import torch

from frostline.errors import MetaError, name_some
from frostline.meta.classes import ClassSet
from frostline.meta.draws import Draws
from frostline.meta.splits import Splits
from frostline.meta.task import Examples, Task
from frostline.state.names import nearest

ALL = "all"
# What a stored result says of how its tasks were drawn; another way of drawing gets another number.
DRAWN_BY = "blake2b/1"


@dataclass(frozen=True)
class TaskDraw:
    """Which classes and images make a task.

    Attributes:
        classes: their names; the place of a name is its label.
        support: for each class the indices of its support images.
        query: for each class the indices of its query images.
        seed: the only randomness of the task, a whole number below 2 ** 63.
    """

    classes: tuple[str, ...]
    support: tuple[tuple[int, ...], ...]
    query: tuple[tuple[int, ...], ...]
    seed: int


class Tasks:
    """Tasks without end, each a function of (seed, split, index, way, shot, queries) and of the classes of its split.

    Of the classes only their sorted names count, their groups, and how many images each has.

    Tasks are the same on every platform and for every version of Python, NumPy and torch, in any order and from any
    number of threads; no generator is read or written. What they leave alone, so that numbers can be compared:

    - another number of queries leaves classes and support as they are, and adds queries to those that were there;
    - another number of shots leaves the classes, and adds to the support; queries come from the rest;
    - another number of ways adds classes behind those that were there;
    - classes of other splits, sizes and resize filters of images do not count.

    Images go class after class. Rotations count as classes of their own, as in published code, so that two rotations
    of one character can meet in a task, unless ``distinct_groups``.

    Args:
        class_set: the classes.
        way: classes in a task, at least 2.
        shot: support images of each.
        queries: query images of each.
        splits: which classes are for what; by default there is one split, "all".
        seed: any whole number.
        distinct_groups: draw groups first, then a class of each: no two classes of a task are of one group.

    Raises:
        MetaError: a split has fewer classes (or groups) than ``way``; a class has fewer images than ``shot + queries``;
            or a number is too small. All of it at once, not at some task.
        DataError: the splits do not belong to the class set.

    Example:
        >>> from frostline.meta.digits_classes import digits
        >>> tasks = Tasks(digits(), way=5, shot=1, queries=3)
        >>> task = tasks.task("all", 0)
        >>> task.support.inputs.shape, task.query.labels.tolist()
        (torch.Size([5, 1, 8, 8]), [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4])
        >>> task.classes
        ('4', '7', '0', '3', '9')
        >>> torch.equal(task.query.inputs, tasks.task("all", 0).query.inputs)
        True
    """

    def __init__(
        self,
        class_set: ClassSet,
        *,
        way: int,
        shot: int,
        queries: int,
        splits: Splits | None = None,
        seed: int = 0,
        distinct_groups: bool = False,
    ) -> None:
        self.class_set = class_set
        self.way, self.shot, self.queries = whole_number(way), whole_number(shot), whole_number(queries)
        self.splits = Splits.of(class_set, **{ALL: class_set.names}) if splits is None else splits
        self.seed = whole_number(seed)
        self.distinct_groups = distinct_groups
        if self.way < 2 or self.shot < 1 or self.queries < 1:
            raise MetaError(
                f"tasks of {way} ways, {shot} shots and {queries} queries\n"
                "  fix: at least 2 ways, 1 shot and 1 query a class"
            )
        if splits is not None:
            splits.check(class_set)
        self._sides = {split: self._side(split, names) for split, names in self.splits.classes.items()}

    def task(self, split: str, index: int) -> Task:
        """Make one task.

        Args:
            split: the name of a split.
            index: which of its tasks, from 0 on; there is no last one.

        Returns:
            The task: float32 images, labels 0 to ``way`` - 1.

        Raises:
            MetaError: there is no such split (the nearest names are given), or the index is negative.
        """
        drawn = self.draw(split, index)
        images = [
            self.class_set.images(name, support + query)
            for name, support, query in zip(drawn.classes, drawn.support, drawn.query, strict=True)
        ]
        support = torch.cat([each[: self.shot] for each in images])
        query = torch.cat([each[self.shot :] for each in images])
        labels = torch.arange(self.way, device=support.device)
        return Task(
            support=Examples(support, labels.repeat_interleave(self.shot)),
            query=Examples(query, labels.repeat_interleave(self.queries)),
            way=self.way,
            classes=drawn.classes,
            split=split,
            index=whole_number(index),
            seed=drawn.seed,
        )

    def batch(self, split: str, start: int, count: int) -> list[Task]:
        """Make the tasks ``start`` to ``start + count - 1`` of a split.

        Raises:
            MetaError: as :meth:`task`.

        Example:
            >>> from frostline.meta.digits_classes import digits
            >>> [task.index for task in Tasks(digits(), way=2, shot=1, queries=1).batch("all", 8, 3)]
            [8, 9, 10]
        """
        return [self.task(split, index) for index in range(start, start + count)]

    def draw(self, split: str, index: int) -> TaskDraw:
        """Say which classes and images make a task, without touching an image.

        Raises:
            MetaError: as :meth:`task`.

        Example:
            >>> from frostline.meta.digits_classes import digits
            >>> drawn = Tasks(digits(), way=2, shot=1, queries=2).draw("all", 0)
            >>> drawn.classes, drawn.support, drawn.query
            (('4', '7'), ((136,), (100,)), ((175, 3), (152, 38)))
        """
        side = self._sides.get(split)
        if side is None:
            near = nearest(split, self._sides) or list(self._sides)
            raise MetaError(f"there is no split {split!r}\n  nearest names: {name_some(near)}")
        index = whole_number(index)
        if index < 0:
            raise MetaError(f"there is no task {index} of {split!r}\n  fix: an index from 0 on")
        key = ("frostline.meta.tasks", DRAWN_BY, self.seed, split, index, side.key)
        if self.distinct_groups:
            groups = [side.groups[place] for place in Draws(*key, "groups").sample(len(side.groups), self.way)]
            classes = tuple(group[Draws(*key, "member", *group).below(len(group))] for group in groups)
        else:
            classes = tuple(side.names[place] for place in Draws(*key, "classes").sample(len(side.names), self.way))
        # Queries come behind the support in one sample without repetition: disjoint, and their number changes nothing
        # of what is drawn before them. A stream for each class, so that the classes before it do not either.
        images = [
            tuple(Draws(*key, "images", name).sample(self.class_set.count(name), self.shot + self.queries))
            for name in classes
        ]
        return TaskDraw(
            classes=classes,
            support=tuple(each[: self.shot] for each in images),
            query=tuple(each[self.shot :] for each in images),
            seed=Draws(*key, "seed").word() >> 1,
        )

    def describe(self) -> dict[str, Any]:
        """What changes a number that is measured on these tasks, as JSON values.

        Example:
            >>> from frostline.meta.digits_classes import digits
            >>> facts = Tasks(digits(), way=2, shot=1, queries=15).describe()
            >>> facts["way"], facts["queries"], facts["data"]["source"], facts["splits"]["classes"]
            (2, 15, 'scikit-learn digits', {'all': 10})
        """
        return {
            "way": self.way,
            "shot": self.shot,
            "queries": self.queries,
            "seed": self.seed,
            "distinct_groups": self.distinct_groups,
            "drawn_by": DRAWN_BY,
            "splits": self.splits.describe(),
            "data": self.class_set.describe(),
        }

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(side.names):,}" for split, side in self._sides.items())
        return f"<Tasks {self.way}-way {self.shot}-shot, {self.queries} queries a class, of classes: {sizes}>"

    def _side(self, split: str, names: tuple[str, ...]) -> _Side:
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(self.class_set.group(name), []).append(name)
        there, what = (len(groups), "groups") if self.distinct_groups else (len(names), "classes")
        if there < self.way:
            raise MetaError(
                f"{self.way}-way tasks cannot be drawn from the split {split!r}: it has {there} {what}\n"
                f"  found: {name_some(list(groups) if self.distinct_groups else names)}\n"
                f"  fix: at most way={there}, more classes, or splits without this one"
            )
        wanted = self.shot + self.queries
        counts = {name: self.class_set.count(name) for name in names}
        short = [f"{name} ({count})" for name, count in counts.items() if count < wanted]
        if short:
            raise MetaError(
                f"{self.shot} shots and {self.queries} queries take {wanted} images of a class; in the split "
                f"{split!r} {len(short)} of {len(names)} classes have fewer\n"
                f"  found: {name_some(short)}\n"
                f"  fix: at most {min(counts.values())} in all, or splits without those classes"
            )
        key = hashlib.blake2b(json.dumps(names).encode(), digest_size=16).hexdigest()
        return _Side(names, tuple(tuple(groups[group]) for group in sorted(groups)), key)


@dataclass(frozen=True)
class _Side:
    """One split: its classes, the same by group, and a hash of their names."""

    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    key: str
