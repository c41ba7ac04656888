"""Tasks: a pure function of their numbers; disjoint, uniform, independent of order; refused early."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline.errors import DataError, MetaError
from frostline.meta.classes import ClassSet, ImageClass, in_memory
from frostline.meta.digits_classes import digits
from frostline.meta.splits import Splits
from frostline.meta.tasks import TaskDraw, Tasks


def numbered(count: int = 12, images: int = 9, order: list[int] | None = None, rotations: bool = False) -> ClassSet:
    """Images that tell by their values which they are: 100 * class + index."""
    made = [
        ImageClass(f"c{i:02d}", (100.0 * i + torch.arange(images)).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous())
        for i in order or range(count)
    ]
    upright = ClassSet(made, description={"source": "tests"})
    return upright.rotated() if rotations else upright


def thirds(class_set: ClassSet) -> Splits:
    return Splits.draw(class_set, {"train": 4, "val": 4, "test": 4}, seed=0)


@given(
    way=st.integers(2, 4),
    shot=st.integers(1, 4),
    queries=st.integers(1, 5),
    index=st.integers(0, 10**12),
    seed=st.integers(-(10**6), 10**20),
    rotations=st.booleans(),
    distinct=st.booleans(),
)
def test_a_task_is_what_it_says(way, shot, queries, index, seed, rotations, distinct):
    class_set = numbered(rotations=rotations)
    splits = thirds(class_set)
    tasks = Tasks(class_set, way=way, shot=shot, queries=queries, splits=splits, seed=seed, distinct_groups=distinct)
    split = "test" if distinct or not rotations else "val"
    task = tasks.task(split, index)
    drawn = tasks.draw(split, index)
    assert (task.way, task.split, task.index, task.classes, task.seed) == (way, split, index, drawn.classes, drawn.seed)
    assert 0 <= task.seed < 2**63
    assert len(set(task.classes)) == way
    assert set(task.classes) <= set(splits.classes[split])
    for examples, places, each in ((task.support, drawn.support, shot), (task.query, drawn.query, queries)):
        assert examples.inputs.dtype == torch.float32
        assert examples.labels.dtype == torch.int64
        assert examples.labels.tolist() == [label for label in range(way) for _ in range(each)]
        expected = torch.cat([class_set.images(n, i) for n, i in zip(task.classes, places, strict=True)])
        assert torch.equal(examples.inputs, expected)
    support, query = (set(examples.inputs[:, 0, 0, 0].tolist()) for examples in (task.support, task.query))
    if not rotations:
        assert len(support) == way * shot
        assert len(query) == way * queries
    for s, q in zip(drawn.support, drawn.query, strict=True):
        assert len({*s, *q}) == shot + queries
    if distinct:
        assert len({class_set.group(name) for name in task.classes}) == way


def test_no_class_of_one_split_is_in_tasks_of_another():
    class_set = numbered(rotations=True)
    tasks = Tasks(class_set, way=2, shot=1, queries=1, splits=thirds(class_set))
    seen = {
        split: {class_set.group(name) for i in range(200) for name in tasks.draw(split, i).classes}
        for split in tasks.splits.classes
    }
    assert {split: len(groups) for split, groups in seen.items()} == {"train": 4, "val": 4, "test": 4}
    assert len(seen["train"] | seen["val"] | seen["test"]) == 12


@given(st.permutations(range(12)))
def test_the_order_in_which_classes_were_found_does_not_count(order: list[int]):
    one, other = (
        Tasks(each, way=3, shot=1, queries=2, splits=thirds(each)) for each in (numbered(), numbered(order=order))
    )
    for index in range(3):
        a, b = one.task("train", index), other.task("train", index)
        assert (a.classes, a.seed) == (b.classes, b.seed)
        assert torch.equal(a.support.inputs, b.support.inputs)
        assert torch.equal(a.query.inputs, b.query.inputs)


def test_the_naive_way_depends_on_the_order_and_on_who_drew_before():
    # Twin: random.sample over the classes as they were listed.
    found = [f"c{i:02d}" for i in range(12)]
    assert random.Random(0).sample(found, 3) != random.Random(0).sample(found[::-1], 3)
    generator = random.Random(0)
    assert generator.sample(found, 3) != generator.sample(found, 3)


def test_tasks_do_not_depend_on_what_was_asked_for_before_nor_on_threads():
    tasks = Tasks(numbered(), way=4, shot=2, queries=3)
    forwards = [tasks.draw("all", index) for index in range(40)]
    assert [tasks.draw("all", index) for index in reversed(range(40))] == forwards[::-1]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda index: tasks.draw("all", index), range(40))) == forwards
    assert [task.seed for task in tasks.batch("all", 10, 5)] == [drawn.seed for drawn in forwards[10:15]]
    assert tasks.batch("all", 3, 0) == []


def test_no_generator_is_read_or_written():
    def state() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    tasks = Tasks(numbered(), way=4, shot=2, queries=3, splits=thirds(numbered()))
    before, task = state(), tasks.task("test", 5)
    assert state() == before
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert torch.equal(tasks.task("test", 5).query.inputs, task.query.inputs)


def test_golden_tasks():
    tasks = Tasks(numbered(), way=3, shot=1, queries=2, splits=thirds(numbered()), seed=0)
    assert [tasks.draw(split, index) for split, index in (("train", 0), ("train", 10**9), ("test", 0))] == GOLDEN
    other = Tasks(numbered(rotations=True), way=3, shot=2, queries=1, seed=-1, distinct_groups=True)
    assert other.draw("all", 7) == GOLDEN_DISTINCT


def test_every_number_of_the_key_counts():
    class_set = numbered()
    splits = Splits.of(class_set, a=class_set.names[:8], b=class_set.names[8:])
    tasks = Tasks(class_set, way=3, shot=1, queries=1, splits=splits)
    renamed = Splits.of(class_set, c=class_set.names[:8])
    fewer = Splits.of(class_set, a=class_set.names[:7])
    seeds = [
        tasks.draw("a", 0).seed,
        tasks.draw("a", 1).seed,
        Tasks(class_set, way=3, shot=1, queries=1, splits=splits, seed=1).draw("a", 0).seed,
        Tasks(class_set, way=3, shot=1, queries=1, splits=renamed).draw("c", 0).seed,
        Tasks(class_set, way=3, shot=1, queries=1, splits=fewer).draw("a", 0).seed,
    ]
    assert len(set(seeds)) == len(seeds)
    # Other splits do not.
    other = Splits.of(class_set, a=class_set.names[:8], z=class_set.names[9:])
    assert Tasks(class_set, way=3, shot=1, queries=1, splits=other).draw("a", 0) == tasks.draw("a", 0)


@pytest.mark.parametrize("distinct", [False, True])
def test_other_numbers_of_queries_shots_and_ways_leave_the_rest_alone(distinct: bool):
    class_set = numbered(rotations=True)

    def drawn(index: int, way: int, shot: int, queries: int) -> TaskDraw:
        tasks = Tasks(class_set, way=way, shot=shot, queries=queries, distinct_groups=distinct)
        return tasks.draw("all", index)

    for index in range(20):
        few, many = drawn(index, 3, 2, 1), drawn(index, 3, 2, 7)
        assert (few.classes, few.support, few.seed) == (many.classes, many.support, many.seed)
        assert few.query == tuple(each[:1] for each in many.query)
        more_shots = drawn(index, 3, 4, 1)
        assert more_shots.classes == few.classes
        assert tuple(each[:2] for each in more_shots.support) == few.support
        more_ways = drawn(index, 7, 2, 1)
        assert more_ways.classes[:3] == few.classes
        assert more_ways.support[:3] == few.support


def test_drawing_queries_first_would_change_the_support():
    # Twin: the common layout, one permutation whose first images are the query set.
    def naive(queries: int) -> list[int]:
        order = random.Random(0).sample(range(9), 9)
        return order[queries : queries + 1]

    assert naive(1) != naive(5)


def test_classes_and_images_are_drawn_uniformly():
    tasks = Tasks(numbered(), way=3, shot=1, queries=2)
    classes: Counter[str] = Counter()
    support: Counter[int] = Counter()
    first_two: Counter[tuple[str, ...]] = Counter()
    for index in range(4000):
        drawn = tasks.draw("all", index)
        classes.update(drawn.classes)
        support.update(each[0] for each in drawn.support)
        first_two[drawn.classes[:2]] += 1
    for counts, outcomes in ((classes, 12), (support, 9), (first_two, 12 * 11)):
        assert len(counts) == outcomes
        expected = counts.total() / outcomes
        statistic = sum((count - expected) ** 2 / expected for count in counts.values())
        # Six standard deviations above the mean of chi-square.
        assert statistic < outcomes - 1 + 6 * (2 * (outcomes - 1)) ** 0.5


def test_two_rotations_of_one_character_meet_unless_groups_are_kept_distinct():
    class_set = numbered(4, rotations=True)

    def meet(distinct: bool) -> int:
        tasks = Tasks(class_set, way=4, shot=1, queries=1, distinct_groups=distinct)
        groups = [[class_set.group(name) for name in tasks.draw("all", index).classes] for index in range(100)]
        return sum(len(set(each)) < 4 for each in groups)

    assert meet(distinct=True) == 0
    assert meet(distinct=False) > 50
    turned = Tasks(class_set, way=4, shot=1, queries=1, distinct_groups=True)
    assert {name for index in range(100) for name in turned.draw("all", index).classes} == set(class_set.names)


def test_another_size_of_the_same_images_gives_the_same_tasks():
    labels = torch.arange(6).repeat_interleave(5)
    small, large = (in_memory(torch.zeros(30, 1, size, size), labels) for size in (2, 5))
    one, other = (Tasks(each, way=3, shot=1, queries=2, seed=9) for each in (small, large))
    assert [one.draw("all", i) for i in range(10)] == [other.draw("all", i) for i in range(10)]


def test_numbers_of_numpy_and_torch_are_whole_numbers_too():
    tasks = Tasks(numbered(), way=3, shot=1, queries=1, seed=int(np.int64(3)))
    way, shot, seed, index = np.int64(3), np.int32(1), torch.tensor(3), np.int64(4)
    again = Tasks(numbered(), way=way, shot=shot, queries=1, seed=seed)
    assert again.task("all", index).seed == tasks.task("all", 4).seed
    assert type(again.task("all", index).index) is int
    assert again.describe() == tasks.describe()
    with pytest.raises(TypeError):
        Tasks(numbered(), way=3.0, shot=1, queries=1)


# Refused when made


def test_fewer_classes_than_ways_are_refused_by_name():
    class_set = numbered()
    splits = Splits.of(class_set, train=class_set.names[:9], test=class_set.names[9:])
    with pytest.raises(MetaError, match=r"4-way .* split 'test': it has 3 classes\n  found: c09, c10, c11\n.*way=3"):
        Tasks(class_set, way=4, shot=1, queries=1, splits=splits)
    turned = numbered(3, rotations=True)
    assert Tasks(turned, way=4, shot=1, queries=1).way == 4
    with pytest.raises(MetaError, match=r"it has 3 groups\n  found: c00, c01, c02"):
        Tasks(turned, way=4, shot=1, queries=1, distinct_groups=True)


def test_fewer_images_than_shots_and_queries_are_refused_by_name():
    few = [ImageClass("few", torch.zeros(4, 1, 2, 2)), ImageClass("fewer", torch.zeros(2, 1, 2, 2))]
    many = [ImageClass(f"c{i}", torch.zeros(9, 1, 2, 2)) for i in range(4)]
    class_set = ClassSet([*few, *many], description={})
    with pytest.raises(MetaError) as caught:
        Tasks(class_set, way=2, shot=1, queries=4)
    for words in ("take 5 images", "split 'all' 2 of 6 classes", "found: few (4), fewer (2)", "at most 2 in all"):
        assert words in str(caught.value)
    # Classes that no split uses do not count.
    assert Tasks(class_set, way=2, shot=1, queries=4, splits=Splits.of(train=["c0", "c1"])).way == 2


@pytest.mark.parametrize("numbers", [(1, 1, 1), (2, 0, 1), (2, 1, 0), (-2, 1, 1)])
def test_numbers_that_are_too_small_are_refused(numbers: tuple[int, int, int]):
    way, shot, queries = numbers
    with pytest.raises(MetaError, match=f"tasks of {way} ways, {shot} shots and {queries} queries"):
        Tasks(numbered(), way=way, shot=shot, queries=queries)


def test_splits_that_do_not_belong_to_the_classes_are_refused():
    with pytest.raises(DataError, match=r"the splits belong to other data"):
        Tasks(numbered(), way=2, shot=1, queries=1, splits=thirds(numbered(images=8)))
    with pytest.raises(DataError, match=r"1 classes do not exist: c1\n  nearest names: c1"):
        Tasks(numbered(), way=2, shot=1, queries=1, splits=Splits.of(train=["c1", "c02"]))
    with pytest.raises(DataError, match=r"1 groups are in two splits: 'c00' \(a, b\)"):
        torn = Splits.of(a=["c00", "c01"], b=["c00/rot090", "c02"])
        Tasks(numbered(rotations=True), way=2, shot=1, queries=1, splits=torn)


def test_unknown_splits_and_negative_indices_are_refused():
    tasks = Tasks(numbered(), way=2, shot=1, queries=1, splits=thirds(numbered()))
    for ask in (tasks.task, tasks.draw, lambda split, index: tasks.batch(split, index, 1)):
        with pytest.raises(MetaError, match=r"no split 'trian'\n  nearest names: train"):
            ask("trian", 0)
        with pytest.raises(MetaError, match=r"no task -1 of 'train'"):
            ask("train", -1)


def test_what_changes_a_number_is_described():
    class_set = digits(rotations="classes")
    splits = Splits.draw(class_set, {"train": 6, "test": 4}, seed=5)
    facts = Tasks(class_set, way=3, shot=2, queries=15, splits=splits, seed=8, distinct_groups=True).describe()
    assert {name: facts[name] for name in ("way", "shot", "queries", "seed", "distinct_groups", "drawn_by")} == {
        "way": 3, "shot": 2, "queries": 15, "seed": 8, "distinct_groups": True, "drawn_by": "blake2b/1",
    }  # fmt: skip
    assert facts["splits"] == splits.describe()
    assert facts["splits"]["made"] == {"by": "draw", "seed": 5, "sizes": {"train": 6, "test": 4}}
    assert facts["data"]["rotations"] == "classes"
    assert facts["data"]["digest"] == class_set.digest


# Stored results name their tasks by these numbers: a change here makes them another experiment.
GOLDEN = [
    TaskDraw(("c00", "c02", "c09"), ((4,), (1,), (2,)), ((0, 7), (7, 6), (7, 5)), 7514914627287520442),
    TaskDraw(("c06", "c00", "c02"), ((7,), (8,), (3,)), ((2, 1), (2, 4), (0, 6)), 6132513433687018616),
    TaskDraw(("c04", "c11", "c08"), ((6,), (0,), (8,)), ((0, 2), (4, 6), (0, 5)), 8942722794640415047),
]
GOLDEN_DISTINCT = TaskDraw(
    ("c08/rot270", "c02", "c07"), ((8, 7), (0, 8), (2, 4)), ((2,), (2,), (0,)), 8926637812694779669
)
