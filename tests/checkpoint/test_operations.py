"""What is done to values, against references that are written out in float64."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from frostline.checkpoint.adapters import ClassRows, ConvLinear, InputChannels, PositionEmbedding
from frostline.checkpoint.operations import Operation
from frostline.errors import CheckpointError
from frostline.state.digest import digest

# One rounding of a weight, and of each of the few additions of a small convolution, in units of the largest output.
DOUBLE = 1e-13
SINGLE = 2**-20


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cast(value: Tensor, to: str, *, lossy: bool = False) -> Tensor:
    return Operation("cast", {"to": to, "lossy": lossy}).run(value)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return digest(one) == digest(other)


EVERY = [
    (Operation("cast", {"to": "float64", "lossy": False}), random(2, 3), None),
    (Operation("cast", {"to": "float32", "lossy": False}), random(2, 3), None),
    (Operation("input-channels", {"to": 1}), random(2, 3, 2, 2), None),
    (Operation("input-channels", {"to": 6}), random(2, 3, 2, 2), None),
    (Operation("position-embedding", {"prefix": 1, "grid": [2, 2], "to": [3, 3]}), random(1, 5, 4), None),
    (Operation("conv-linear", {"to": [2, 3, 1, 1]}), random(2, 3), None),
    (Operation("scalar", {"to": []}), random(1), None),
    (Operation("class-rows", {"rows": [[2, 0]], "of": 3}), random(2, 3), random(3, 3, seed=1)),
]


@pytest.mark.parametrize(("operation", "value", "current"), EVERY, ids=str)
def test_neither_argument_is_changed_and_json_is_a_way_back(operation: Operation, value: Tensor, current: Tensor):
    before = digest(value), None if current is None else digest(current)
    result = operation.run(value, current)
    assert (digest(value), None if current is None else digest(current)) == before
    again = Operation(**json.loads(json.dumps(operation.to_json())))
    assert again == operation
    assert same_bits(again.run(value, current), result)
    assert operation.needs_current == (current is not None)
    assert str(operation).startswith(f"{operation.name}(")


def test_class_rows_write_into_memory_of_their_own():
    current = random(3, 2)
    result = Operation("class-rows", {"rows": [[0, 0]], "of": 3}).run(random(1, 2), current)
    assert result.data_ptr() != current.data_ptr()


def test_an_operation_that_is_not_known():
    with pytest.raises(CheckpointError, match="an operation 'resize', which this version does not know"):
        Operation("resize", {}).run(torch.zeros(1))


# Input channels


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, DOUBLE), (torch.float32, SINGLE)])
@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (3, 6), (3, 3), (2, 1), (1, 4)])
def test_an_image_that_repeats_its_channels_gives_what_it_gave(old: int, new: int, dtype: torch.dtype, error: float):
    weight = random(8, old, 3, 3, dtype=dtype)
    adapted = Operation("input-channels", {"to": new}).run(weight)
    assert (adapted.shape, adapted.dtype) == ((8, new, 3, 3), dtype)
    grey = random(2, 1, 9, 9, dtype=torch.float64, seed=1)
    before = functional.conv2d(grey.repeat(1, old, 1, 1), weight.double())
    after = functional.conv2d(grey.repeat(1, new, 1, 1), adapted.double())
    assert (before - after).abs().max() <= error * before.abs().max()
    # The failing twins: the first channel alone, and repetition without a scale.
    for naive in (weight[:, :1].repeat(1, new, 1, 1), weight.repeat(1, new, 1, 1)[:, :new]):
        wrong = functional.conv2d(grey.repeat(1, new, 1, 1), naive.double())
        if old != new:
            assert (before - wrong).abs().max() > 0.1 * before.abs().max()


def test_three_channels_to_four_by_the_rule():
    weight = random(8, 3, 3, 3)
    adapted = Operation("input-channels", {"to": 4}).run(weight)
    expected = torch.stack([weight[:, c % 3].double() * 0.75 for c in range(4)], dim=1).float()
    assert torch.equal(adapted, expected)


def test_three_channels_to_one_are_added_in_float64():
    weight = torch.tensor([1e8, 1.0, -1e8]).reshape(1, 3, 1)
    assert weight.sum(1).item() != 1  # the naive way loses the one in the middle
    assert Operation("input-channels", {"to": 1}).run(weight).item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_rounded_once(dtype: torch.dtype):
    weight = random(4, 3, 2, 2, dtype=dtype)
    for to in (1, 4):
        wide = Operation("input-channels", {"to": to}).run(weight.double())
        assert torch.equal(Operation("input-channels", {"to": to}).run(weight), wide.to(dtype))


# Position embeddings


def resize(value: Tensor, prefix: int, to: int) -> Tensor:
    operation = PositionEmbedding().fit(tuple(value.shape), (*value.shape[:-2], to * to + prefix, value.shape[-1]))
    assert operation is not None
    assert operation.arguments["prefix"] == prefix
    return operation.run(value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 7), (7, 8)])
def test_the_grid_is_resized_and_tokens_in_front_are_not(prefix: int, old: int, new: int, dtype: torch.dtype):
    value = random(1, old * old + prefix, 6, dtype=dtype)
    resized = resize(value, prefix, new)
    assert (resized.shape, resized.dtype) == ((1, new * new + prefix, 6), dtype)
    assert same_bits(resized[:, :prefix].contiguous(), value[:, :prefix].contiguous())
    grid = torch.empty(1, 6, old, old, dtype=torch.float64)
    for row in range(old):
        for column in range(old):
            grid[0, :, row, column] = value[0, prefix + row * old + column].double()
    image = functional.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    expected = torch.stack([image[0, :, i // new, i % new] for i in range(new * new)]).to(dtype)
    assert torch.equal(resized[0, prefix:], expected)
    # The failing twin: a grid that is taken for columns before rows is another one.
    assert not torch.equal(resized[0, prefix:].reshape(new, new, 6).transpose(0, 1).reshape(-1, 6), expected)


def test_equal_grids_change_nothing():
    value = random(1, 50, 4)
    operation = Operation("position-embedding", {"prefix": 1, "grid": [7, 7], "to": [7, 7]})
    assert torch.equal(operation.run(value), value)


@pytest.mark.parametrize("to", [3, 8, 20])
def test_a_constant_embedding_stays_constant(to: int):
    value = torch.full((1, 50, 3), 0.7, dtype=torch.float64)
    # Weights of a cubic that are rounded add up to 1 within a few units in the last place.
    assert (resize(value, 1, to) - 0.7).abs().max() < 1e-14


def test_position_embeddings_without_a_leading_dimension():
    value = random(17, 3)
    assert torch.equal(resize(value, 1, 6), resize(value.unsqueeze(0), 1, 6)[0])


# Convolution and linear layer


def test_a_one_by_one_convolution_and_a_linear_layer_give_the_same():
    linear = nn.Linear(5, 7, dtype=torch.float64)
    conv = nn.Conv2d(5, 7, 1, dtype=torch.float64)
    there = ConvLinear().fit((7, 5), (7, 5, 1, 1))
    back = ConvLinear().fit((7, 5, 1, 1), (7, 5))
    assert there is not None
    assert back is not None
    with torch.no_grad():
        conv.weight.copy_(there.run(linear.weight))
        conv.bias.copy_(linear.bias)  # type: ignore[union-attr]
        image = random(2, 5, 3, 4, dtype=torch.float64)
        expected = linear(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        # Five products are added up, in whatever order.
        assert (conv(image) - expected).abs().max() < 1e-14
    assert torch.equal(back.run(conv.weight), linear.weight)


def test_a_scalar_keeps_its_value():
    assert torch.equal(Operation("scalar", {"to": []}).run(torch.tensor([7])), torch.tensor(7))
    assert torch.equal(Operation("scalar", {"to": [1]}).run(torch.tensor(7)), torch.tensor([7]))


# Class rows

OLD, NEW = ["person", "bicycle", "car"], ["polyp", "car", "ulcer", "person"]


def rows_of(source: Tensor, current: Tensor, groups: int = 1) -> Tensor:
    operation = ClassRows(OLD, NEW, groups=groups).fit(tuple(source.shape), tuple(current.shape))
    assert operation is not None
    return operation.run(source, current)


@pytest.mark.parametrize("shape", [(), (8,), (8, 1, 1)])
@pytest.mark.parametrize("groups", [1, 3])
def test_rows_are_found_by_name_and_others_keep_what_the_model_has(groups: int, shape: tuple[int, ...]):
    source, current = random(3 * groups, *shape), random(4 * groups, *shape, seed=1)
    result = rows_of(source, current, groups)
    for group in range(groups):
        for index, name in enumerate(NEW):
            expected = source[3 * group + OLD.index(name)] if name in OLD else current[4 * group + index]
            assert torch.equal(result[4 * group + index], expected)
    # The failing twin: by number, `polyp` would get what was learned of `person`.
    assert not torch.equal(result[0], source[0])


@pytest.mark.parametrize(
    ("stored", "live", "wide"),
    [
        (torch.float64, torch.float32, torch.float64),
        (torch.float16, torch.float32, torch.float32),
        (torch.bfloat16, torch.float16, torch.float32),
        (torch.float8_e4m3fn, torch.float32, torch.float32),
        (torch.float8_e4m3fn, torch.float8_e5m2, torch.float32),
        (torch.int32, torch.int64, torch.int64),
    ],
)
def test_rows_of_another_type_are_not_rounded_on_the_way(stored: torch.dtype, live: torch.dtype, wide: torch.dtype):
    source = (random(3, 4, dtype=torch.float64) * 8).to(stored)
    current = (random(4, 4, dtype=torch.float64, seed=1) * 8).to(live)
    result = rows_of(source, current)
    assert result.dtype == wide
    assert torch.equal(result[[1, 3]], source.to(wide)[[2, 0]])
    assert torch.equal(result[[0, 2]], current.to(wide)[[0, 2]])


def test_rows_that_a_coarser_type_would_round_are_refused_by_the_cast_behind():
    value, current = torch.tensor([[1 + 2**-40]], dtype=torch.float64), torch.zeros(1, 1)
    result = Operation("class-rows", {"rows": [[0, 0]], "of": 1}).run(value, current)
    with pytest.raises(CheckpointError, match="float64 in the checkpoint loses values as float32"):
        cast(result, "float32")


def test_rows_need_the_model_and_as_many_rows_as_were_planned():
    operation = Operation("class-rows", {"rows": [[0, 0]], "of": 2})
    with pytest.raises(CheckpointError, match="there is no model here"):
        operation.run(torch.ones(1, 2))
    with pytest.raises(CheckpointError, match="3 rows in the model, 2 when it was planned for"):
        operation.run(torch.ones(1, 2), torch.ones(3, 2))


# Casts

INF, NAN = float("inf"), float("nan")
TINY = 2.0**-149


@pytest.mark.parametrize(
    ("values", "dtype", "to"),
    [
        ([1.5, -0.0, 0.0, INF, -INF, NAN], torch.float32, "float16"),
        ([1.5, -0.0, 0.0, INF, NAN], torch.float16, "float64"),
        ([1.5, TINY, 2.0**127], torch.float64, "float32"),
        ([1.5, -2.0, -0.0], torch.float32, "float8_e4m3fn"),
        ([1.5, -2.0, -0.0, NAN], torch.float8_e4m3fn, "float32"),
        ([1.5, -2.0, -0.0, INF], torch.float8_e5m2, "bfloat16"),
        ([1, -3, 2**31 - 1], torch.int64, "int32"),
        ([0, 65535], torch.int32, "uint16"),
        ([True, False], torch.bool, "bool"),
        ([1 + 2j, complex(NAN, 1), complex(-0.0, 0.5)], torch.complex128, "complex64"),
        ([], torch.float64, "float16"),
    ],
)
def test_a_cast_that_keeps_every_value(values: list[Any], dtype: torch.dtype, to: str):
    value = torch.tensor(values, dtype=torch.float32 if dtype.itemsize == 1 and dtype.is_floating_point else dtype)
    value = value.to(dtype)
    result = cast(value, to)
    assert result.dtype == getattr(torch, to)
    # The payload of a NaN may change, its sign and that of a zero do not.
    assert [str(number) for number in result.tolist()] == [str(number) for number in value.tolist()]


@pytest.mark.parametrize(
    ("values", "dtype", "to"),
    [
        ([1 + 2**-20], torch.float32, "float16"),
        ([1 + 2**-10], torch.float32, "bfloat16"),
        ([70000.0], torch.float32, "float16"),  # would be infinite
        ([1e-30], torch.float32, "float16"),  # would be zero
        ([-1e-30], torch.float32, "float16"),
        ([1e39], torch.float64, "float32"),
        ([0.1], torch.float64, "float32"),
        ([TINY / 2], torch.float64, "float32"),
        ([0.3], torch.float32, "float8_e4m3fn"),
        ([1e6], torch.float32, "float8_e4m3fn"),
        ([2**31], torch.int64, "int32"),
        ([-1], torch.int32, "uint8"),
        ([256], torch.int32, "uint8"),
        ([1.5], torch.float32, "int64"),
        ([-0.0], torch.float32, "int64"),  # the sign of zero
        ([-0.0], torch.float32, "float8_e4m3fnuz"),
        ([2.0], torch.float32, "bool"),
        ([2**24 + 1], torch.int64, "float32"),
        ([complex(NAN, 0.1)], torch.complex128, "complex64"),
        ([complex(0.1, 0)], torch.complex128, "complex64"),
    ],
)
def test_a_cast_that_would_lose_values_is_refused(values: list[Any], dtype: torch.dtype, to: str):
    value = torch.tensor(values, dtype=dtype)
    with pytest.raises(CheckpointError) as caught:
        cast(value, to)
    assert str(caught.value) == f"{str(dtype)[6:]} in the checkpoint loses values as {to}"
    assert same_bits(cast(value, to, lossy=True), value.to(getattr(torch, to)))


@pytest.mark.parametrize("to", ["nothing", "nn", "load", "Tensor", "", None, 3])
def test_a_cast_to_what_is_no_type(to: Any):
    with pytest.raises((CheckpointError, TypeError)):
        cast(torch.ones(1), to)


@example([-math.nan], "bfloat16")
@given(st.lists(st.floats(width=64), max_size=6), st.sampled_from(["float32", "float16", "bfloat16"]))
def test_a_cast_is_accepted_if_and_only_if_the_way_back_gives_the_same(values: list[float], to: str):
    value = torch.tensor(values, dtype=torch.float64)
    there = value.to(getattr(torch, to)).double()
    # By hand: number for number, NaN for NaN, and a zero of the same sign.
    kept = all((a != a and b != b) or str(a) == str(b) for a, b in zip(there.tolist(), values, strict=True))
    if kept:
        assert same_bits(cast(value, to), value.to(getattr(torch, to)))
    else:
        with pytest.raises(CheckpointError):
            cast(value, to)


def test_operations_that_come_from_adapters_give_the_shape_they_promise():
    conv = InputChannels().fit((4, 3, 2, 2), (4, 5, 2, 2))
    assert conv is not None
    assert conv.run(random(4, 3, 2, 2)).shape == (4, 5, 2, 2)
