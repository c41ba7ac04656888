"""Class sets: order, values, groups and digests."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from frostline.errors import DataError
from frostline.meta.classes import ClassSet, ImageClass, in_memory


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def some(count: int = 3) -> list[ImageClass]:
    return [ImageClass(f"class {i}", noise(i, i + 2, 1, 3, 3)) for i in range(count)]


@given(st.permutations(range(6)))
def test_the_order_they_are_given_in_does_not_count(order: list[int]):
    classes = some(6)
    one, other = (ClassSet(c, description={}) for c in (classes, [classes[i] for i in order]))
    assert one.names == other.names == tuple(sorted(each.name for each in classes))
    assert one.digest == other.digest
    assert one.members == other.members
    assert all(torch.equal(one.images(name), other.images(name)) for name in one.names)


def test_an_order_as_found_would_change_the_digest():
    # Twin: a list of names in the order found is another list.
    found = [each.name for each in some(6)]
    shuffled = random.Random(0).sample(found, 6)
    assert found != shuffled


def test_whole_numbers_are_divided_by_255_and_floating_ones_are_left():
    bytes_ = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    values = ClassSet([ImageClass("a", bytes_)], description={}).images("a")
    expected = torch.tensor([value / 255 for value in range(256)], dtype=torch.float64).to(torch.float32)
    assert values.dtype == torch.float32
    assert torch.equal(values.flatten(), expected)
    floats = noise(0, 2, 3, 4, 4).double() * 100 - 50
    assert torch.equal(ClassSet([ImageClass("a", floats)], description={}).images("a"), floats.float())


def test_images_come_in_the_order_asked_for_and_are_copies():
    images = noise(0, 5, 1, 3, 3)
    class_set = ClassSet([ImageClass("a", images)], description={})
    before = class_set.digest
    got = class_set.images("a", [3, 0, 3])
    assert torch.equal(got, images[[3, 0, 3]])
    got.zero_()
    class_set.images("a").zero_()
    assert class_set.images("a", []).shape == (0, 1, 3, 3)
    assert ClassSet([ImageClass("a", images)], description={}).digest == before


def test_rotations_are_exact_turns_of_one_group():
    upright = ClassSet([ImageClass("x", noise(0, 2, 1, 3, 3), part="background"), *some(2)], description={})
    turned = upright.rotated()
    assert len(turned) == 12
    assert len(turned.members) == 3
    assert turned.members["x"] == ("x", "x/rot090", "x/rot180", "x/rot270")
    for turns, name in enumerate(turned.members["x"]):
        assert torch.equal(turned.images(name), torch.rot90(upright.images("x"), turns, (2, 3)))
        assert turned.images(name).is_contiguous()
        assert (turned.group(name), turned.part(name), turned.count(name)) == ("x", "background", 2)
    assert turned.images("x").data_ptr() != upright.images("x").data_ptr()
    assert turned.describe()["rotations"] == "classes"
    assert upright.describe()["rotations"] == "none"


def test_every_difference_changes_the_digest():
    images = noise(0, 2, 1, 3, 3)
    changed = images.clone()
    changed[1, 0, 2, 2] = -changed[1, 0, 2, 2]
    sets = [
        [ImageClass("a", images), ImageClass("b", images)],
        [ImageClass("a", images), ImageClass("c", images)],
        [ImageClass("a", images), ImageClass("b", changed)],
        [ImageClass("a", changed), ImageClass("b", images)],
        [ImageClass("a", images), ImageClass("b", images.flip(0))],
        [ImageClass("a", images), ImageClass("b", images, group="a")],
        [ImageClass("a", images), ImageClass("b", images, quarter_turns=1)],
        [ImageClass("a", images.double()), ImageClass("b", images.double())],
        [ImageClass("a", images)],
    ]
    assert len({ClassSet(each, description={}).digest for each in sets}) == len(sets)


def test_copies_have_the_digest_of_the_original():
    class_set = ClassSet(some(), description={"source": "tests"}).rotated()
    for again in (copy.deepcopy(class_set), pickle.loads(pickle.dumps(class_set))):
        assert again.digest == class_set.digest
        assert again.describe() == class_set.describe()


def test_what_cannot_be_a_class_set_is_refused_by_name():
    good = noise(0, 2, 1, 3, 3)
    cases = {
        "there is no class": [],
        "names stand for several classes: a": [ImageClass("a", good), ImageClass("a", good)],
        "a class has no name": [ImageClass("", good)],
        "1 classes have no images: b": [ImageClass("a", good), ImageClass("b", good[:0])],
        "'b': (1, 2, 2), torch.float32": [ImageClass("a", good), ImageClass("b", good[..., :2, :2])],
        "'b': (1, 3, 3), torch.float64": [ImageClass("a", good), ImageClass("b", good.double())],
        "'a' are of dtype torch.int64": [ImageClass("a", good.long())],
        "(1, 3, 2) cannot be turned by 90 degrees": [ImageClass("a", good[..., :2], quarter_turns=1)],
    }
    for words, classes in cases.items():
        with pytest.raises(DataError) as caught:
            ClassSet(classes, description={})
        assert words in str(caught.value)
    with pytest.raises(DataError, match="not square"):
        ClassSet([ImageClass("a", good[..., :2])], description={}).rotated()


def test_unknown_classes_and_images_are_named():
    class_set = ClassSet(some(), description={})
    for ask in (class_set.count, class_set.group, class_set.part, class_set.images):
        with pytest.raises(DataError, match=r"no class 'clas 1' among 3\n  nearest names: class 1"):
            ask("clas 1")
    for outside in (2, -1):
        with pytest.raises(DataError, match=rf"'class 0' has 2 images, there is no image {outside}"):
            class_set.images("class 0", [0, outside])
    with pytest.raises(DataError, match=r"no class '\\x1b\[31m'"):
        class_set.count("\x1b[31m")


# Tensors in memory


@given(st.lists(st.integers(-3, 12), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_tensors_are_sorted_into_their_classes(labels: list[int], shuffle: random.Random):
    inputs = noise(0, len(labels), 2, 4, 4)
    class_set = in_memory(inputs, torch.tensor(labels))
    assert class_set.names == tuple(sorted({str(label) for label in labels}))
    for name in class_set.names:
        places = [place for place, label in enumerate(labels) if str(label) == name]
        assert torch.equal(class_set.images(name), inputs[places])


def test_tensors_are_copied_and_may_be_no_images():
    inputs = noise(0, 4, 7)
    class_set = in_memory(
        inputs, torch.tensor([0, 0, 1, 1]), {0: "bee", 1: "ant"}, {"bee": "insects", "ant": "insects"}
    )
    kept = inputs.clone()
    inputs.zero_()
    assert class_set.names == ("ant", "bee")
    assert torch.equal(class_set.images("bee"), kept[:2])
    assert class_set.members == {"insects": ("ant", "bee")}
    assert class_set.shape == (7,)


def test_names_of_labels_that_do_not_occur_are_passed_over():
    assert in_memory(noise(0, 2, 1, 2, 2), torch.tensor([2, 2]), ["a", "b", "c"]).names == ("c",)


def test_tensors_that_do_not_fit_are_refused():
    inputs = noise(0, 3, 1, 2, 2)
    labels = torch.tensor([0, 1, 1])
    with pytest.raises(DataError, match=r"inputs of shape \(3, 1, 2, 2\) and labels of shape \(2,\)"):
        in_memory(inputs, labels[:2])
    with pytest.raises(DataError, match=r"labels of shape \(3, 1\)"):
        in_memory(inputs, labels[:, None])
    with pytest.raises(DataError, match=r"torch.float32 are no whole numbers"):
        in_memory(inputs, labels.float())
    with pytest.raises(DataError, match="1 labels have no name: 1"):
        in_memory(inputs, labels, ["a"])
    with pytest.raises(DataError, match=r"1 classes that do not exist: bea\n  nearest names: bee"):
        in_memory(inputs, labels, ["ant", "bee"], {"bea": "insects"})
    with pytest.raises(DataError, match="stand for several classes: a"):
        in_memory(inputs, labels, ["a", "a"])
    with pytest.raises(DataError, match="there is no class"):
        in_memory(inputs[:0], labels[:0])
