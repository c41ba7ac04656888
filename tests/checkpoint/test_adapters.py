"""Which operation leads from one shape to another, and where there is none."""

from __future__ import annotations

import math
from typing import Any

import pytest

from frostline.checkpoint.adapters import (
    Adapter,
    ClassRows,
    ConvLinear,
    InputChannels,
    Narrow,
    PositionEmbedding,
    Scalar,
    read_adapt,
)
from frostline.checkpoint.operations import Operation
from frostline.errors import CheckpointError

Shape = tuple[int, ...]


@pytest.mark.parametrize(
    ("source", "target", "to"),
    [
        ((64, 3, 7, 7), (64, 1, 7, 7), 1),
        ((64, 1, 7, 7), (64, 3, 7, 7), 3),
        ((64, 3, 7, 7), (64, 4, 7, 7), 4),
        ((8, 3, 5), (8, 2, 5), 2),
        ((8, 3, 2, 2, 2), (8, 1, 2, 2, 2), 1),
        ((64, 3, 7, 7), (64, 3, 7, 7), None),
        ((64, 3, 7, 7), (32, 1, 7, 7), None),
        ((64, 3, 7, 7), (64, 1, 3, 3), None),
        ((64, 3, 7, 7), (64, 1, 7), None),
        ((64, 3), (64, 1), None),  # a linear layer has no channels of an image
        ((64,), (32,), None),
        ((), (), None),
    ],
)
def test_input_channels(source: Shape, target: Shape, to: int | None):
    expected = None if to is None else Operation("input-channels", {"to": to})
    assert InputChannels().fit(source, target) == expected


@pytest.mark.parametrize(
    ("source", "target", "prefix", "grid", "to"),
    [
        ((1, 196, 8), (1, 256, 8), 0, 14, 16),  # without a class token: 196 is a square itself
        ((1, 197, 8), (1, 257, 8), 1, 14, 16),
        ((1, 197, 8), (1, 577, 8), 1, 14, 24),
        ((1, 198, 8), (1, 578, 8), 2, 14, 24),  # class and distillation token
        ((1, 201, 8), (1, 261, 8), 5, 14, 16),  # class token and four registers
        ((197, 8), (50, 8), 1, 14, 7),
        ((1, 2, 8), (1, 5, 8), 1, 1, 2),
    ],
)
def test_position_embeddings(source: Shape, target: Shape, prefix: int, grid: int, to: int):
    expected = Operation("position-embedding", {"prefix": prefix, "grid": [grid, grid], "to": [to, to]})
    assert PositionEmbedding().fit(source, target) == expected
    assert PositionEmbedding(prefix_tokens=prefix).fit(source, target) == expected
    assert PositionEmbedding(prefix_tokens=prefix + 1).fit(source, target) is None


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((1, 197, 8), (1, 256, 8)),  # a class token on one side only
        ((1, 196, 8), (1, 257, 8)),
        ((1, 195, 8), (1, 256, 8)),
        ((1, 197, 8), (1, 197, 8)),
        ((1, 197, 8), (1, 257, 16)),
        ((2, 197, 8), (2, 257, 8)),
        ((1, 197, 8), (257, 8)),
        ((197,), (257,)),
        ((1, 1, 8), (1, 4, 4)),
        ((1, 0, 8), (1, 4, 8)),
        ((), ()),
    ],
)
def test_what_is_no_position_embedding(source: Shape, target: Shape):
    assert PositionEmbedding().fit(source, target) is None


def test_a_remainder_would_take_196_patches_for_195_and_a_class_token():
    """The failing twin: what repositories do, the integer root and what is left over."""
    for tokens, front in ((196, 0), (197, 1)):
        operation = PositionEmbedding().fit((1, tokens, 8), (1, tokens - 196 + 256, 8))
        assert operation is not None
        assert operation.arguments["prefix"] == front
    modulo = {tokens: tokens - math.isqrt(tokens - 1) ** 2 for tokens in (196, 197)}
    assert modulo == {196: 27, 197: 1}


def test_two_sides_of_different_sizes_never_leave_squares_with_two_numbers_in_front():
    """Why the adapter has to guess nothing: squares that are at most 8 apart are 1, 4, 9 and 16, each pair once."""
    roots = range(1, 64)
    apart = [b * b - a * a for a in roots for b in roots if 0 < b * b - a * a <= 8]
    assert sorted(apart) == [3, 5, 7, 8]
    assert len(set(apart)) == len(apart)


def test_position_embeddings_of_every_size_are_told_exactly():
    squares = {n * n: n for n in range(1, 40)}
    for source in range(1, 300):
        for target in (*range(1, 30), 197, 257, 577):
            fits = [n for n in range(9) if source - n in squares and target - n in squares]
            operation = PositionEmbedding().fit((1, source, 2), (1, target, 2))
            if source == target or not fits:
                assert operation is None
            else:
                assert operation is not None
                assert [operation.arguments["prefix"]] == fits
                (rows, columns), (new_rows, new_columns) = operation.arguments["grid"], operation.arguments["to"]
                assert rows * columns + fits[0] == source
                assert new_rows * new_columns + fits[0] == target


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [
        ((10, 64, 1, 1), (10, 64), True),
        ((10, 64), (10, 64, 1, 1), True),
        ((10, 64, 1), (10, 64), True),
        ((10, 64, 3, 3), (10, 64), False),
        ((10, 64, 1, 1), (64, 10), False),
        ((10, 64), (10, 64), False),
        ((10, 64, 1, 1), (10, 64, 1), False),
        ((10,), (10, 1), False),
        ((), (), False),
    ],
)
def test_one_by_one_convolution_and_linear_layer(source: Shape, target: Shape, fits: bool):
    assert ConvLinear().fit(source, target) == (Operation("conv-linear", {"to": list(target)}) if fits else None)


@pytest.mark.parametrize(
    ("source", "target", "fits"),
    [((1,), (), True), ((), (1,), True), ((), (), False), ((1,), (1,), False), ((2,), (), False), ((1, 1), (), False)],
)
def test_a_scalar(source: Shape, target: Shape, fits: bool):
    assert Scalar().fit(source, target) == (Operation("scalar", {"to": list(target)}) if fits else None)


# Class rows


def test_rows_go_by_name():
    rows = ClassRows(["person", "bicycle", "car"], ["polyp", "car", "person"])
    assert rows.fits_equal_shapes  # as many classes are not yet the same
    assert rows.fit((3, 64), (3, 64)) == Operation("class-rows", {"rows": [[1, 2], [2, 0]], "of": 3})
    assert rows.fit((3,), (3,)) == rows.fit((3, 64, 1, 1), (3, 64, 1, 1)) == rows.fit((3, 64), (3, 64))


def test_rows_with_anchors():
    rows = ClassRows(["a", "b"], ["b", "x", "a"], groups=2)
    operation = rows.fit((4, 8), (6, 8))
    assert operation is not None
    # row = anchor * classes + class
    assert operation.arguments == {"rows": [[0, 1], [2, 0], [3, 3], [5, 2]], "of": 6}


@pytest.mark.parametrize(
    ("source", "target"),
    [((3, 64), (3, 64)), ((2, 64), (2, 64)), ((2, 64), (3, 32)), ((), (3,)), ((2,), ()), ((4, 64), (6, 64))],
)
def test_rows_of_other_counts(source: Shape, target: Shape):
    assert ClassRows(["a", "b"], ["a", "b", "c"]).fit(source, target) is None


def test_classes_that_are_named_twice_or_have_nothing_in_common():
    with pytest.raises(CheckpointError, match="ClassRows: a are named twice"):
        ClassRows(["a", "b", "a"], ["a"])
    with pytest.raises(CheckpointError, match="ClassRows: b are named twice"):
        ClassRows(["a"], ["a", "b", "b"])
    with pytest.raises(CheckpointError) as caught:
        ClassRows(["a", "b\x1b"], ["c"])
    assert "no class in common\n  checkpoint: a, b\\x1b\n  model: c\n  fix: keep=" in str(caught.value)


# Forms


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), []),
        ("narrow", [("*", Narrow())]),
        (InputChannels(), [("*", InputChannels())]),
        (["scalar", PositionEmbedding(1)], [("*", Scalar()), ("*pos*", PositionEmbedding(1))]),
        ({"head": "conv-linear", "stem*": InputChannels()}, [("head", ConvLinear()), ("stem*", InputChannels())]),
    ],
)
def test_adapters_are_read_in_every_form(given: Any, expected: list[tuple[str, Adapter]]):
    assert read_adapt(given) == expected


def test_an_adapter_that_is_not_known_and_class_rows_for_no_layer():
    with pytest.raises(CheckpointError, match=r"no adapter 'resize'\n  known: input-channels, .*ClassRows"):
        read_adapt("resize")
    rows = ClassRows(["a"], ["a", "b"])
    with pytest.raises(CheckpointError, match="ClassRows for which layer"):
        read_adapt([rows])
    assert read_adapt({"fc": rows}) == [("fc", rows)]


def test_only_class_rows_have_to_do_with_equal_shapes():
    adapters = [InputChannels(), PositionEmbedding(), ConvLinear(), Scalar(), Narrow()]
    for adapter in adapters:
        assert not adapter.fits_equal_shapes
        for shape in [(), (1,), (4, 3), (1, 4, 3), (4, 3, 1, 1)]:
            assert adapter.fit(shape, shape) is None
    assert Narrow().fit((1,), (2,)) is None
