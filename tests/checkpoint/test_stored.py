"""Tensors that lie somewhere else: shape and dtype now, values on demand, one place for one tensor."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline.checkpoint.stored import StoredTensor, as_bytes, in_memory
from frostline.state.digest import digest

DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.uint16,
    torch.bool,
]


def joined(entry: StoredTensor, most: int) -> bytes:
    # A piece is valid until the next one is asked for.
    return b"".join(bytes(piece.numpy()) for piece in entry.pieces(most))


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(1, 40))
def test_pieces_are_the_bytes_of_the_values(dtype: torch.dtype, shape: list[int], most: int):
    count = torch.Size(shape).numel()
    value = (torch.arange(count) % 3).to(dtype).reshape(shape)
    entry = in_memory(value)
    assert (entry.shape, entry.dtype, entry.numel) == (tuple(shape), dtype, count)
    assert entry.nbytes == count * dtype.itemsize
    whole = b"".join(bytes(each.view(torch.uint8).numpy()) for each in value.reshape(-1).unsqueeze(1))
    assert joined(entry, most) == whole
    sizes = [len(piece) for piece in entry.pieces(most)]
    assert sizes == [most] * (len(whole) // most) + [len(whole) % most] * bool(len(whole) % most)


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0)[::3],
        torch.arange(12.0)[5:6].expand(7),
        torch.arange(12.0).reshape(1, 3, 2, 2).to(memory_format=torch.channels_last),
        torch.arange(4.0)[2],
        torch.tensor([1 + 2j, 3 - 4j]).conj(),
        torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        torch.arange(6.0)[2:4],
        torch.zeros(0, 3),
    ],
    ids=["transposed", "strided", "expanded", "channels last", "scalar", "conjugate", "negative", "offset", "empty"],
)
def test_values_of_views_are_read_in_row_major_order(value: Tensor):
    entry = in_memory(value)
    read = entry.read()
    assert read.is_contiguous()
    assert not read.is_conj()
    assert not read.is_neg()
    assert torch.equal(read, value)
    plain = torch.tensor(value.tolist(), dtype=value.dtype).reshape(value.shape)
    assert joined(entry, 5) == b"".join(bytes(piece.numpy()) for piece in [as_bytes(plain)])
    assert entry.digest() == digest(value) == digest(read)


def test_what_is_read_is_nobody_elses_memory():
    parameter = nn.Parameter(torch.ones(3))
    entry = in_memory(parameter)
    read = entry.read()
    assert not read.requires_grad
    read.zero_()
    assert torch.equal(parameter.detach(), torch.ones(3))
    assert torch.equal(entry.read(), torch.ones(3))


# Places


def test_one_tensor_has_one_place():
    weight = nn.Parameter(torch.zeros(4, 4))
    place = in_memory(weight).place
    assert hash(place) == hash(in_memory(weight).place)
    for same in (weight.data, weight.detach(), weight.view(4, 4), weight[:]):
        assert in_memory(same).place == place


def test_other_values_in_the_same_memory_have_another_place():
    weight = torch.arange(16.0).reshape(4, 4)
    others = [weight.T, weight[:2], weight[1:], weight.view(16), weight.view(torch.int32), weight.clone()]
    seen = [in_memory(value).place for value in (weight, *others)]
    assert len(set(seen)) == len(seen)
    waves = torch.tensor([1 + 2j, 3 - 4j])
    assert in_memory(waves).place != in_memory(waves.conj()).place
    assert in_memory(waves.imag).place != in_memory(waves.conj().imag).place
    # The failing twin: by address alone they are one.
    assert waves.data_ptr() == waves.conj().data_ptr()


def test_tensors_without_memory_are_each_their_own():
    entries = [in_memory(torch.zeros(0)), in_memory(torch.zeros(0)), in_memory(torch.zeros(2, device="meta"))]
    assert len({entry.place for entry in entries}) == 3
    empty = torch.zeros(0)
    assert in_memory(empty).place == in_memory(empty).place


def test_a_tensor_that_lies_elsewhere_is_read_once_for_all_pieces():
    @dataclass(frozen=True, eq=False)
    class Counted(StoredTensor):
        reads: list[int]

        def read(self) -> Tensor:
            self.reads.append(1)
            return torch.arange(6, dtype=torch.int16)

    entry = Counted((6,), torch.int16, "here", [])
    assert joined(entry, 5) == bytes([0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0])
    assert len(entry.reads) == 1
    assert entry.digest() == digest(torch.arange(6, dtype=torch.int16))


# Bytes


@pytest.mark.parametrize("value", [torch.tensor(1.5), torch.tensor([[258]], dtype=torch.int16), torch.zeros(0, 2)])
def test_bytes_of_small_tensors(value: Tensor):
    assert bytes(as_bytes(value).numpy()) == value.numpy().tobytes()


def test_bytes_of_one_element_of_a_strided_view():
    value = torch.arange(6, dtype=torch.int16).reshape(2, 3)[1:, 2:]
    assert value.is_contiguous()
    assert value.stride() == (3, 1)
    assert bytes(as_bytes(value).numpy()) == b"\x05\x00"
    with pytest.raises(RuntimeError, match="stride"):  # the naive way
        torch.arange(6, dtype=torch.int16)[::2][1:2].view(torch.uint8)
