"""Digests: equal exactly where shape, dtype and every byte are; compared with a hash computed here."""

from __future__ import annotations

import copy
import ctypes
import importlib
import io
import pickle
import random
import struct
import subprocess
import sys
import threading
import warnings
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline.errors import CannotDigest
from frostline.state import digest as public_digest
from frostline.state.digest import digest, digest_all, digest_value

NUMPY = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}
ALL_DTYPES = [
    *NUMPY,
    torch.bfloat16,
    *[
        getattr(torch, name)
        for name in sorted(dir(torch))
        if name.startswith("float8_") or name in {"float4_e2m1fn_x2", "uint16", "uint32", "uint64"}
    ],
]
# What `copy_` or `stack` cannot do for a dtype is no matter here: values are made as bytes and viewed.
WHOLE = 32 * 12


def raw(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A tensor of random bytes: every bit pattern, NaN payloads, infinities and subnormals included."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    count = int(np.prod(shape)) * dtype.itemsize
    data = np.random.default_rng(seed).integers(0, 2 if dtype is torch.bool else 256, count, dtype=np.uint8)
    return torch.from_numpy(data).view(dtype).reshape(shape)


def memory(tensor: Tensor) -> bytes:
    """The bytes of a contiguous tensor, read from memory."""
    assert tensor.is_contiguous()
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.numel() else b""


def reference(dtype: torch.dtype, shape: tuple[int, ...], data: bytes) -> str:
    """What the digest is defined to be, computed without Frostline."""
    return xxhash.xxh3_128_hexdigest(f"{dtype}|{shape}|".encode() + data)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (WHOLE,), (4, 3, 2, 5), (2, 0, 3)], ids=str)
def test_it_is_the_hash_of_header_and_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = raw(dtype, shape)
    assert digest(tensor) == reference(dtype, shape, memory(tensor))
    assert len(digest(tensor)) == 32


@pytest.mark.parametrize("dtype", NUMPY, ids=str)
def test_bytes_are_those_that_numpy_sees(dtype: torch.dtype) -> None:
    tensor = raw(dtype, (3, 4))
    assert tensor.numpy().dtype == NUMPY[dtype]
    for view in (tensor, tensor.t(), tensor[::2, 1:], tensor.flip(0)):
        data = np.ascontiguousarray(view.numpy()).tobytes()
        assert digest(view) == reference(dtype, tuple(view.shape), data)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_single_byte_counts(dtype: torch.dtype) -> None:
    tensor = raw(dtype, (6,))
    seen = {digest(tensor)}
    flat = tensor.view(torch.uint8)
    for i in range(flat.numel()):
        flat[i] ^= 1
        seen.add(digest(tensor))
        flat[i] ^= 1
    assert len(seen) == 1 + flat.numel()
    assert digest(tensor) in seen


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_equal_exactly_where_shape_dtype_and_bytes_are(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([d for d in ALL_DTYPES if d is not torch.bool]))
    shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=3)))
    tensor = raw(dtype, shape, data.draw(st.integers(0, 10**6)))
    # The same bytes elsewhere in memory, under other strides.
    assert digest(tensor.flatten().clone().reshape(shape)) == digest(tensor)
    padded = torch.zeros((*shape, 2), dtype=torch.uint8 if dtype.itemsize == 1 else torch.int16)
    if padded.element_size() == dtype.itemsize:
        padded = padded.view(dtype)
        padded[..., 0] = tensor
        assert digest(padded[..., 0]) == digest(tensor)
    flipped = tensor.clone()
    line = flipped.reshape(-1).view(torch.uint8)
    position = data.draw(st.integers(0, line.numel() - 1))
    bit = data.draw(st.integers(0, 7))
    line[position] ^= 1 << bit
    assert memory(flipped) != memory(tensor)
    assert digest(flipped) != digest(tensor)
    line[position] ^= 1 << bit
    assert digest(flipped) == digest(tensor)


def test_shape_and_dtype_count() -> None:
    zeros = [
        torch.zeros(shape, dtype=dtype)
        for shape in [(), (1,), (4,), (2, 2), (4, 1), (1, 4), (0,), (0, 4), (4, 0)]
        for dtype in (torch.float32, torch.int32, torch.int64, torch.bfloat16, torch.float16)
    ]
    assert len({digest(z) for z in zeros}) == len(zeros)


def test_nan_payloads_and_the_sign_of_zero_count() -> None:
    """`torch.equal` gets both wrong: NaN is unequal to itself, and 0 equals -0."""
    nan = torch.tensor([float("nan")])
    assert digest(nan) == digest(nan.clone())
    assert not torch.equal(nan, nan.clone())
    other = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert other.isnan().all()
    assert digest(other) != digest(nan)
    zero = torch.zeros(1)
    assert digest(zero) != digest(-zero)
    assert torch.equal(zero, -zero)


def test_the_order_of_elements_counts() -> None:
    """`torch.hash_tensor` and a sum do not see a permutation."""
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
    assert digest(a) != digest(b)
    assert a.sum() == b.sum()
    if hasattr(torch, "hash_tensor"):
        assert torch.hash_tensor(a) == torch.hash_tensor(b)


# ---------------------------------------------------------------- layouts and views


def test_memory_formats_and_strides_do_not_count() -> None:
    image = raw(torch.float32, (2, 3, 4, 5))
    same = digest(image)
    assert digest(image.to(memory_format=torch.channels_last)) == same
    assert digest(image.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)) == same
    volume = raw(torch.float32, (2, 3, 2, 2, 2))
    assert digest(volume.to(memory_format=torch.channels_last_3d)) == digest(volume)
    assert digest(image.transpose(0, 1)) != same


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_expanded_and_strided_views_are_their_values(dtype: torch.dtype) -> None:
    one = raw(dtype, (3, 1))
    wide = one.expand(3, 4)
    data = b"".join(memory(one[i]) * 4 for i in range(3))
    assert digest(wide) == reference(dtype, (3, 4), data)
    assert digest(wide.t()) == reference(dtype, (4, 3), b"".join(memory(one[i]) for i in range(3)) * 4)
    column = raw(dtype, (5, 2))[:, 1]
    assert digest(column) == reference(dtype, (5,), b"".join(memory(column[i]) for i in range(5)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_pending_conjugation_and_negation_are_values(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1 + 2j, complex(0.0, -0.0), complex(float("inf"), 1)], dtype=dtype)
    conjugate = tensor.conj()
    assert conjugate.is_conj()
    assert conjugate.data_ptr() == tensor.data_ptr()
    assert digest(conjugate) == digest(conjugate.resolve_conj()) != digest(tensor)
    assert digest(conjugate.conj()) == digest(tensor)
    negative = conjugate.imag
    assert negative.is_neg()
    assert digest(negative) == digest(negative.resolve_neg())
    pending = torch._neg_view(torch.ones(3))  # contiguous, so that no copy resolves it on the way
    assert pending.is_neg()
    assert pending.is_contiguous()
    assert digest(pending) == digest(torch.full((3,), -1.0))
    assert digest_all({"a": tensor, "b": conjugate}) == {"a": digest(tensor), "b": digest(conjugate)}
    # The naive way, the bytes at the address, takes both for the same.
    assert ctypes.string_at(conjugate.data_ptr(), tensor.nbytes) == memory(tensor)


def test_a_single_element_with_a_stride_can_be_hashed() -> None:
    """Torch calls it contiguous, and then refuses to view it as bytes."""
    one = torch.arange(2.0).reshape(1, 2)[:, 1]
    assert one.is_contiguous()
    assert one.stride() == (2,)
    with pytest.raises(RuntimeError):
        one.view(torch.uint8)
    assert digest(one) == digest(torch.tensor([1.0]))
    assert digest(one.reshape(())) == digest(torch.tensor(1.0))


def test_gradients_parameters_and_inference_tensors() -> None:
    values = raw(torch.float32, (3,)).nan_to_num(0.5)
    same = digest(values)
    assert digest(nn.Parameter(values.clone())) == same
    assert digest(values.clone().requires_grad_() * 1) == same
    with torch.inference_mode():
        inside = values.clone()
        assert digest(inside) == same
    assert digest(inside) == same
    parameter = nn.Parameter(values.clone())
    digest(parameter)
    assert parameter._version == 0
    assert parameter.grad is None
    if hasattr(nn, "Buffer"):
        assert digest(nn.Buffer(values.clone())) == same


# ---------------------------------------------------------------- quantized and subclasses


@pytest.fixture
def quantized_is_deprecated():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("quantized_is_deprecated")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32], ids=str)
def test_quantized_per_tensor(dtype: torch.dtype) -> None:
    values = torch.tensor([[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]])

    def make(scale=0.1, zero=3):
        return torch.quantize_per_tensor(values, scale, zero, dtype)

    tensor = make()
    header = f"{dtype}|(2, 3)|torch.per_tensor_affine|0.1|3|".encode()
    assert digest(tensor) == xxhash.xxh3_128_hexdigest(header + memory(tensor.int_repr()))
    assert digest(tensor) == digest(make())
    assert digest(tensor.t().t()) == digest(tensor)
    assert digest(tensor.t()) == digest(torch.quantize_per_tensor(values.t().contiguous(), 0.1, 3, dtype))
    # Integers alike, scale or zero point not: other values.
    same_integers = torch._make_per_tensor_quantized_tensor(tensor.int_repr(), 0.2, 3)
    assert torch.equal(same_integers.int_repr(), tensor.int_repr())
    assert len({digest(t) for t in (tensor, same_integers, make(0.1, 4))}) == 3


@pytest.mark.usefixtures("quantized_is_deprecated")
def test_quantized_per_channel() -> None:
    integers = torch.arange(9, dtype=torch.int8).reshape(3, 3)
    scales, zeros = torch.tensor([0.1, 0.2, 0.3]).double(), torch.tensor([0, 1, 2])
    make = torch._make_per_channel_quantized_tensor
    rows, columns = make(integers, scales, zeros, 0), make(integers, scales, zeros, 1)
    assert not torch.equal(rows.dequantize(), columns.dequantize())
    header = f"torch.qint8|(3, 3)|torch.per_channel_affine|0|{scales.tolist()!r}|{zeros.tolist()!r}|".encode()
    assert digest(rows) == xxhash.xxh3_128_hexdigest(header + memory(integers))
    different = [rows, columns, make(integers, scales * 2, zeros, 0), make(integers, scales, zeros + 1, 0)]
    assert len({digest(t) for t in different}) == 4
    assert digest(make(integers.clone(), scales.clone(), zeros.clone(), 0)) == digest(rows)
    assert digest_all({"r": rows, "c": columns}) == {"r": digest(rows), "c": digest(columns)}


class Pair(Tensor):
    """The smallest wrapper subclass: two inner tensors, no storage of its own."""

    one: Tensor
    two: Tensor
    note: object

    @staticmethod
    def __new__(cls, one: Tensor, two: Tensor, note: object = None) -> Pair:
        made = Tensor._make_wrapper_subclass(cls, one.shape, dtype=one.dtype)
        made.one, made.two, made.note = one, two, note
        return made

    def __tensor_flatten__(self):
        return ["one", "two"], self.note

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return type(args[0])(args[0].one.detach(), args[0].two.detach(), args[0].note)
        raise NotImplementedError(func)


class Other(Pair):
    pass


def test_subclasses_are_their_inner_tensors() -> None:
    zeros, ones = torch.zeros(2), torch.ones(2)
    same = digest(Pair(zeros, ones))
    assert digest(Pair(zeros.clone(), ones.clone())) == same
    different = [Pair(ones, zeros), Pair(zeros, zeros), Pair(zeros, ones, "note"), Other(zeros, ones)]
    different += [Pair(zeros.double(), ones), Pair(zeros[:1], ones)]
    assert len({same, *(digest(t) for t in different)}) == 1 + len(different)
    assert digest_all({"a": Pair(zeros, ones), "b": Pair(ones, zeros)}) == {"a": same, "b": digest(different[0])}
    assert digest(Pair(Pair(zeros, ones), ones)) != same
    inner = Pair(zeros, torch.empty(2, device="meta"))
    with pytest.raises(CannotDigest, match=r"^digest of 'w\.two': the tensor is on the meta device"):
        digest(inner, name="w")


def test_a_subclass_that_only_adds_methods_is_a_tensor() -> None:
    class Tagged(Tensor):
        pass

    assert digest(torch.ones(2).as_subclass(Tagged)) == digest(torch.ones(2))


def test_ragged_nested_tensors_compare_between_objects() -> None:
    """The ragged size is a symbol of which each object has its own; it must not count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def make(*sizes):
            return torch.nested.nested_tensor([torch.ones(n) for n in sizes], layout=torch.jagged)

        assert digest(make(2, 3)) == digest(make(2, 3)) != digest(make(3, 2))
        with pytest.raises(CannotDigest, match="nested tensor of strided layout"):
            digest_all({"n": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])})


# ---------------------------------------------------------------- refusals


def lazy_parameter() -> Tensor:
    return nn.LazyLinear(2).weight


def fake() -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(2)


def csr() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "beta state"
        return torch.eye(2).to_sparse_csr()


@pytest.mark.parametrize(
    "way", [lambda t: digest(t, name="trunk.w"), lambda t: digest_all({"ok": torch.zeros(1), "trunk.w": t})]
)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: torch.empty(2, device="meta"),
            (
                "digest of 'trunk.w': the tensor is on the meta device and has no bytes.\n"
                "  fix: materialize it first (module.to_empty(device=...) and load its weights)"
            ),
        ),
        (
            lambda: nn.Parameter(torch.empty(0, device="meta")),
            (
                "digest of 'trunk.w': the tensor is on the meta device and has no bytes.\n"
                "  fix: materialize it first (module.to_empty(device=...) and load its weights)"
            ),
        ),
        (
            lazy_parameter,
            (
                "digest of 'trunk.w': the tensor is not materialized yet (lazy module).\n"
                "  fix: run one forward pass first, so that its shape is known"
            ),
        ),
        (
            lambda: nn.LazyBatchNorm1d().running_mean,
            (
                "digest of 'trunk.w': the tensor is not materialized yet (lazy module).\n"
                "  fix: run one forward pass first, so that its shape is known"
            ),
        ),
        (
            lambda: torch.eye(2).to_sparse(),
            (
                "digest of 'trunk.w': layout torch.sparse_coo is not supported.\n"
                "  fix: hash its dense form (tensor.to_dense()) or its parts (indices, values)"
            ),
        ),
        (
            csr,
            (
                "digest of 'trunk.w': layout torch.sparse_csr is not supported.\n"
                "  fix: hash its dense form (tensor.to_dense()) or its parts (indices, values)"
            ),
        ),
        (fake, "digest of 'trunk.w': the bytes of a FakeTensor cannot be read ("),
    ],
    ids=["meta", "meta parameter", "lazy", "lazy buffer", "coo", "csr", "fake"],
)
def test_what_has_no_bytes_is_refused_by_name(make, message: str, way) -> None:
    with pytest.raises(CannotDigest) as caught:
        way(make())
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, ValueError)


# ---------------------------------------------------------------- many at once


@pytest.fixture(params=[1, 4], ids=["one thread", "four threads"])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_many_at_once_are_each_by_itself(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ran_on: set[int] = set()

    module = importlib.import_module("frostline.state.digest")
    plain = module._digest

    def noting(tensor: Tensor, name: str, pool: object) -> str:
        if name.startswith("t"):  # the long ones; short ones are hashed where they are
            ran_on.add(threading.get_ident())
        return plain(tensor, name, pool)

    monkeypatch.setattr(module, "_digest", noting)
    tensors = {f"t{i}": torch.full((2**20 + i,), float(i)) for i in range(9)}  # 36 MiB: enough for threads
    tensors["view"] = tensors["t3"][1:]
    tensors["small"] = torch.tensor(1)
    tensors["empty"] = torch.zeros(0)
    assert sum(t.nbytes for t in tensors.values()) > 32 * 2**20
    found = digest_all(tensors)
    # Without the calls below, which run here.
    assert (threading.get_ident() in ran_on) == (threads == 1)
    assert list(found) == list(tensors)
    assert found == {name: digest(tensor) for name, tensor in tensors.items()}


@pytest.mark.usefixtures("threads")
def test_a_refusal_among_many_still_has_its_name() -> None:
    tensors = {f"t{i}": torch.zeros(2**20) for i in range(9)}
    tensors["trunk.w"] = torch.empty(3, device="meta")
    with pytest.raises(CannotDigest, match=r"'trunk\.w'"):
        digest_all(tensors)


def test_tied_tensors_are_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("frostline.state.digest")
    hashed: list[str] = []

    plain = module._digest

    def counting(tensor: Tensor, name: str, pool: object) -> str:
        hashed.append(name)
        return plain(tensor, name, pool)

    monkeypatch.setattr(module, "_digest", counting)
    weight = nn.Parameter(torch.arange(4.0).reshape(2, 2))
    empty = torch.zeros(0)
    pair = Pair(torch.zeros(1), torch.ones(1))
    tensors = {
        "embed": weight,
        "decode": weight,
        "detached": weight.detach(),
        "transposed": weight.t(),
        "integers": weight.detach().view(torch.int32),
        "half": weight[:1],
        "e1": empty,
        "e2": empty,
        "p1": pair,
        "p2": pair,
    }
    found = digest_all(tensors)
    assert hashed == ["embed", "transposed", "integers", "half", "e1", "p1"]
    assert found == {name: digest(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("length", [15, 16, 17, 40])
def test_a_long_tensor_is_hashed_by_the_hashes_of_its_pieces(
    threads: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("frostline.state.digest")
    monkeypatch.setattr(module, "_PIECE", 16)
    monkeypatch.setattr(module, "_WORTH_THREADS", 0)
    tensor = torch.arange(length, dtype=torch.uint8)
    content = bytes(range(length))
    header = f"torch.uint8|({length},)|".encode()
    if length > 16:
        pieces = [content[start : start + 16] for start in range(0, length, 16)]
        content = f"{len(pieces)} pieces|".encode() + b"".join(xxhash.xxh3_128_digest(piece) for piece in pieces)
    expected = xxhash.xxh3_128_hexdigest(header + content)
    assert digest(tensor) == expected
    assert digest_all({"a": tensor, "b": tensor + 1})["a"] == expected


def test_a_flipped_bit_in_any_piece_counts() -> None:
    tensor = torch.zeros(2**26 + 2**25, dtype=torch.uint8)  # a piece and a half
    before = digest(tensor)
    for index in (0, 2**26 - 1, 2**26, -1):
        tensor[index] ^= 1
        assert digest(tensor) != before
        tensor[index] ^= 1
    assert digest(tensor) == before


def test_no_tensors() -> None:
    assert digest_all({}) == {}


def test_the_package_exports_the_function() -> None:
    assert public_digest is digest


# ---------------------------------------------------------------- what the digest is for


def test_digests_see_what_versions_do_not() -> None:
    """F3: the training forward of batch norm moves its statistics and leaves `_version` where it was."""
    bn = nn.BatchNorm1d(3)
    before = {name: (t._version, digest(t)) for name, t in bn.named_buffers()}
    bn(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    after = {name: (t._version, digest(t)) for name, t in bn.named_buffers()}
    moved = [name for name in before if before[name][1] != after[name][1]]
    bumped = [name for name in before if before[name][0] != after[name][0]]
    assert moved == ["running_mean", "running_var", "num_batches_tracked"]
    assert bumped == ["num_batches_tracked"]


@pytest.mark.parametrize("write", ["data", "numpy", "fused"])
def test_digests_see_other_writes_that_versions_do_not(write: str) -> None:
    weight = nn.Parameter(torch.ones(4))
    before, version = digest(weight), weight._version
    if write == "data":
        weight.data.add_(1)
    elif write == "numpy":
        weight.detach().numpy()[0] = 2
    else:
        optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
        weight.grad = torch.ones(4)
        optimizer.step()
    assert weight._version == version
    assert digest(weight) != before


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA DEVICE HERE: digests of CUDA tensors are not tested")
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_cuda_tensors_have_the_digest_of_their_values(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = raw(dtype, (8, 12))
    assert digest(tensor.cuda()) == digest(tensor)
    # In pieces: a tensor larger than one piece is the same bytes.
    monkeypatch.setattr(importlib.import_module("frostline.state.digest"), "_PIECE", 16)
    assert digest(tensor.cuda()) == digest(tensor)
    if dtype.itemsize > 1 or dtype is torch.uint8:
        assert digest(tensor.cuda()[:, ::2]) == digest(tensor[:, ::2])


# ---------------------------------------------------------------- extra states

Point = namedtuple("Point", "x y")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.tuples(inner)
    ),
    max_leaves=8,
)


def exact(value: object) -> object:
    """A form in which values compare equal exactly when types and bits agree."""
    if isinstance(value, dict):
        return ("dict", sorted((k, exact(v)) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [exact(v) for v in value])
    return (type(value).__name__, struct.pack("<d", value) if isinstance(value, float) else value)


@settings(deadline=None, max_examples=200)
@given(PLAIN, PLAIN)
def test_values_have_one_digest_exactly_where_they_are_equal(one: object, other: object) -> None:
    assert digest_value(copy.deepcopy(one)) == digest_value(one)
    assert digest_value(pickle.loads(pickle.dumps(one))) == digest_value(one)
    assert (digest_value(one) == digest_value(other)) == (exact(one) == exact(other))


def test_the_naive_way_finds_a_copy_different() -> None:
    """The pickle of a tensor names addresses, and pickles of equal strings depend on which are one object."""
    state = {"scale": torch.ones(3), "history": [torch.zeros(2)]}
    copied = copy.deepcopy(state)
    assert pickle.dumps(state) != pickle.dumps(copied)
    assert digest_value(state) == digest_value(copied)
    word = "".join(random.Random(0).choices("ab", k=30))
    assert pickle.dumps([word, word]) != pickle.dumps([word, (word + ".")[:-1]])
    assert digest_value([word, word]) == digest_value([word, (word + ".")[:-1]])


def test_values_of_every_shape() -> None:
    values = [
        None,
        0,
        0.0,
        -0.0,
        False,
        "",
        b"",
        [],
        (),
        {},
        [[]],
        [0, [1]],
        [[0], 1],
        torch.zeros(1),
        [torch.zeros(1)],
        torch.zeros(1, dtype=torch.bfloat16),
        OrderedDict(a=1),
        {"a": 1},
        Point(1, 2),
        (1, 2),
        np.zeros(2),
        {1, 2},
        Box(torch.zeros(2)),
        Box(torch.ones(2)),
    ]
    assert len({digest_value(v) for v in values}) == len(values)
    assert [digest_value(copy.deepcopy(v)) for v in values] == [digest_value(v) for v in values]


class Box:
    """An object of the user's own, with a tensor inside."""

    def __init__(self, content: Tensor) -> None:
        self.content = content


def test_the_order_of_a_dictionary_does_not_count() -> None:
    assert digest_value({"a": 1, "b": [2]}) == digest_value({"b": [2], "a": 1})
    assert digest_value({"a": 1, "b": 2}) != digest_value({"a": 2, "b": 1})


def test_values_have_the_same_digest_in_another_process() -> None:
    code = (
        "import torch; from frostline.state.digest import digest_value\n"
        "print(digest_value({'scale': torch.arange(3.0), 'names': ['a', 'b'], 'k': (1, None, b'x')}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest_value({"k": (1, None, b"x"), "names": ["a", "b"], "scale": torch.arange(3.0)})


@pytest.mark.parametrize("value", [lambda: 1, {"f": [lambda: 1]}, Box(lambda: 1)])  # type: ignore[arg-type]
def test_what_cannot_be_pickled_is_refused_by_name(value: object) -> None:
    with pytest.raises(CannotDigest, match=r"^digest of 'trunk\.extra_state': a \w+ in it cannot be pickled \("):
        digest_value(value, name="trunk.extra_state")


def test_a_tensor_without_bytes_inside_a_value_is_refused_by_name() -> None:
    with pytest.raises(CannotDigest, match=r"'trunk\.extra_state'"):
        digest_value({"a": Box(torch.empty(1, device="meta"))}, name="trunk.extra_state")


def test_streams_count_by_their_content() -> None:
    """Some quantization libraries return a stream from `get_extra_state`."""
    assert digest_value(io.BytesIO(b"a")) == digest_value(io.BytesIO(b"a")) != digest_value(io.BytesIO(b"b"))


def test_a_look_leaves_the_storage_as_resizable_as_it_was() -> None:
    """FSDP2 frees gathered parameters by resizing their storage, and fails on one that ``numpy()`` has seen."""
    tensor = torch.ones(1000)
    digest(tensor)
    digest_all({"a": tensor})
    tensor.untyped_storage().resize_(0)
    naive = torch.ones(1000)
    naive.numpy()
    with pytest.raises(RuntimeError, match="not resizable"):
        naive.untyped_storage().resize_(0)


def test_copies_that_are_made_for_hashing_live_as_long() -> None:
    turned = torch.arange(4096.0).view(64, 64).t()
    assert {digest(turned) for _ in range(50)} == {digest(turned.contiguous())}
