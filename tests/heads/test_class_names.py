"""Classes by number and by name."""

from __future__ import annotations

import numpy as np
import pytest

from frostline.errors import ModelError
from frostline.heads.class_names import read_classes, read_names, rows_kept


def test_numbers_of_any_integer_type():
    assert read_classes(np.int64(4), "f") == (4, None)
    assert read_classes(("a",), "f") == (1, ("a",))


@pytest.mark.parametrize("classes", [0, -3, True, 2.0, None])
def test_what_is_no_number_of_classes(classes: object):
    with pytest.raises(ModelError, match="is no number of classes\n  fix: how many there are, at least 1"):
        read_classes(classes, "replace_head(Net, 'fc')")


@pytest.mark.parametrize("classes", ["cat", b"cat", [], ()])
def test_what_are_no_names(classes: object):
    with pytest.raises(ModelError, match="no names of classes\n  fix: a list of distinct names"):
        read_classes(classes, "f")


def test_names_are_distinct_strings():
    with pytest.raises(ModelError, match="found: 3, ''\n"):
        read_names(["a", 3, ""], "classes", "f")
    with pytest.raises(ModelError, match="classes has a, b more than once"):
        read_names(["a", "b", "a", "c", "b", "a"], "classes", "f")


def test_names_cannot_play_with_the_terminal():
    with pytest.raises(ModelError) as caught:
        read_names(["\x1b[31m", "\x1b[31m"], "classes", "f")
    assert "\x1b" not in str(caught.value)
    assert "\\x1b[31m" in str(caught.value)


def test_rows_of_each_group_stay_in_their_group():
    assert rows_kept("ab", "bca", 1) == (2, 0)
    assert rows_kept("ab", "bca", 3) == (2, 0, 5, 3, 8, 6)
