"""Which tensors share bytes: compared with a count of the bytes themselves."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from frostline.state.aliases import find_aliases


def bytes_of(tensor: Tensor) -> set[int]:
    """The address of every byte, element by element."""
    size, start = tensor.element_size(), tensor.data_ptr()
    steps = itertools.product(*(range(n) for n in tensor.shape))
    offsets = (sum(i * s for i, s in zip(index, tensor.stride(), strict=True)) for index in steps)
    return {start + offset * size + byte for offset in offsets for byte in range(size)}


def reference(tensors: dict[str, Tensor]) -> dict[str, list[str]]:
    where = {path: bytes_of(tensor) for path, tensor in tensors.items()}
    found = {path: [other for other in where if other != path and where[path] & where[other]] for path in where}
    return {path: others for path, others in found.items() if others}


@st.composite
def views(draw: st.DrawFn) -> dict[str, Tensor]:
    memory = torch.zeros(48, dtype=torch.uint8)
    found: dict[str, Tensor] = {}
    for i in range(draw(st.integers(1, 5))):
        dtype = draw(st.sampled_from([torch.uint8, torch.int16, torch.float32]))
        line = memory.view(dtype)
        sizes = draw(st.lists(st.integers(1, 3), max_size=3))
        strides = [draw(st.integers(0, 4)) for _ in sizes]
        extent = 1 + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        if extent <= line.numel():
            offset = draw(st.integers(0, line.numel() - extent))
            found[f"t{i}"] = line.as_strided(sizes, strides, offset)
    return found


@settings(deadline=None, max_examples=300)
@given(views())
def test_found_exactly_where_bytes_are_shared(tensors: dict[str, Tensor]) -> None:
    assert find_aliases(tensors) == reference(tensors)


def test_columns_of_one_matrix_interleave_without_sharing() -> None:
    matrix = torch.zeros(4, 4)
    left, right = matrix[:, :2], matrix[:, 2:]
    assert find_aliases({"left": left, "right": right}) == {}
    # The naive way, one storage, would say that they are the same memory.
    assert left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()
    assert find_aliases({"left": left, "right": right, "row": matrix[2]}) == {
        "left": ["row"],
        "right": ["row"],
        "row": ["left", "right"],
    }


def test_memory_of_numpy_is_found_although_the_storages_differ() -> None:
    array = np.zeros(8, dtype=np.float32)
    tensors = {"all": torch.from_numpy(array), "end": torch.from_numpy(array[4:]), "begin": torch.from_numpy(array[:4])}
    assert tensors["all"].untyped_storage().data_ptr() != tensors["end"].untyped_storage().data_ptr()
    assert find_aliases(tensors) == reference(tensors)
    assert find_aliases(tensors)["end"] == ["all"]


def test_tensors_without_memory_are_alone_and_the_same_object_is_not_compared_with_others() -> None:
    meta = torch.empty(3, device="meta")
    tensors = {
        "meta": meta,
        "meta2": torch.empty(3, device="meta"),
        "empty": torch.empty(0),
        "empty2": torch.empty(0),
        "sparse": torch.eye(2).to_sparse(),
        "meta3": meta,
    }
    assert find_aliases(tensors) == {"meta": ["meta3"], "meta3": ["meta"]}


def test_one_tensor_under_two_names_in_the_order_given() -> None:
    tensor, other = torch.zeros(2), torch.zeros(2)
    assert find_aliases({"z": tensor, "m": other, "a": tensor, "k": tensor}) == {
        "z": ["a", "k"],
        "a": ["z", "k"],
        "k": ["z", "a"],
    }
