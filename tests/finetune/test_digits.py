"""The embedded digits: all of them, once, split by the seed alone."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits

from frostline.finetune.digits import digits_data


def test_every_image_is_on_exactly_one_side_with_its_own_label():
    source = load_digits()
    expected = sorted(
        (tuple(image.ravel()), int(label)) for image, label in zip(source.images, source.target, strict=True)
    )
    data = digits_data(seed=3)
    seen = [
        (tuple((image * 16).ravel().tolist()), int(label))
        for side in (data.train, data.val)
        for image, label in zip(side.images, side.labels["digit"], strict=True)
    ]
    assert len(seen) == 1797
    assert sorted(seen) == expected


def test_shapes_ranges_and_types():
    data = digits_data(seed=0)
    for side in (data.train, data.val):
        assert side.images.shape[1:] == (1, 8, 8)
        assert side.images.dtype == torch.float32
        assert side.images.min() == 0
        assert side.images.max() == 1
        assert all(labels.dtype == torch.int64 and len(labels) == len(side) for labels in side.labels.values())


def test_the_split_is_stratified():
    data = digits_data(seed=0)
    train, val = (side.labels["digit"].bincount(minlength=10) for side in (data.train, data.val))
    assert torch.equal(val, ((train + val) * 0.25).round().long())


def test_parity_is_the_parity_of_the_digit():
    data = digits_data(seed=0)
    for side in (data.train, data.val):
        assert torch.equal(side.labels["parity"], side.labels["digit"] % 2)
    assert data.class_names == {"digit": tuple("0123456789"), "parity": ("even", "odd")}


def test_the_split_depends_on_the_seed_alone():
    torch.manual_seed(1)
    first = digits_data(seed=5)
    torch.manual_seed(2)
    again, other = digits_data(seed=5), digits_data(seed=6)
    assert torch.equal(first.val.images, again.val.images)
    assert not torch.equal(first.val.images, other.val.images)


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    digits_data(seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_dataset_pairs_images_with_one_property():
    data = digits_data(seed=0)
    dataset = data.val.dataset("parity")
    image, label = dataset[7]
    assert len(dataset) == len(data.val)
    assert torch.equal(image, data.val.images[7])
    assert label == data.val.labels["parity"][7]
