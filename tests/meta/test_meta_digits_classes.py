"""The digits as few-shot classes, against scikit-learn's own arrays."""

from __future__ import annotations

import sys
import typing

import pytest
import torch
from sklearn.datasets import load_digits

from frostline.errors import DataError, MissingExtra
from frostline.meta.digits_classes import digits


def test_every_digit_is_there_once():
    class_set, loaded = digits(), load_digits()
    assert class_set.names == tuple("0123456789")
    assert class_set.shape == (1, 8, 8)
    assert sum(map(class_set.count, class_set.names)) == 1797
    for digit in range(10):
        expected = torch.tensor(loaded.images[loaded.target == digit] / 16, dtype=torch.float32)
        assert torch.equal(class_set.images(str(digit))[:, 0], expected)
        assert 174 <= class_set.count(str(digit)) <= 183
        assert 0 <= expected.min() < expected.max() == 1


def test_rotations_are_forty_classes_in_ten_groups():
    class_set = digits(rotations="classes")
    assert len(class_set) == 40
    assert set(class_set.members) == set("0123456789")
    assert class_set.describe()["rotations"] == "classes"


def test_other_rotations_are_refused():
    with pytest.raises(DataError, match="rotations is 'all'\n  fix: one of 'classes', 'none'"):
        digits(rotations=typing.cast("typing.Any", "all"))


def test_without_scikit_learn_the_cure_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=r"frostline\[train\]"):
        digits()
