"""Content hashes of tensors: two tensors have one digest if and only if shape, dtype and every byte agree.

Digests, not ``_version``: PyTorch does not bump the version of ``running_mean`` and ``running_var``, nor of parameters
that a fused optimizer writes. XXH3-128 runs at the speed of memory; it is no defence against forgery, and need not be.
"""

from __future__ import annotations

import ctypes
import io
import pickle
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import xxhash
from torch import Tensor

from frostline.errors import CannotDigest

T = TypeVar("T")
ALGORITHM = "xxh3-128"
# Longer tensors are hashed in pieces of this many bytes, and the hashes of the pieces are hashed: so that several
# threads can share one tensor, and one on a device needs no second copy of itself on the host.
_PIECE = 64 * 2**20
# Below this many bytes in all, starting threads costs more than it saves.
_WORTH_THREADS = 32 * 2**20
# Up to so many bytes, Python's part of hashing a tensor takes longer than the hashing.
_SHORT = 2**18


def digest(tensor: Tensor, *, name: str = "tensor") -> str:
    """Hash a tensor's shape, dtype and bytes.

    The bytes are those of the values in row-major order, so strides, memory format and device do not count;
    the payload of a NaN and the sign of zero do. Works for every dtype (bfloat16, float8, complex, bool, quantized),
    for tensors that are not contiguous, have no elements, or lie on another device, and for tensor subclasses that
    describe their inner tensors (``__tensor_flatten__``). The tensor is only read. Of a tensor of more than 64 MiB the
    hashes of its 64 MiB pieces are hashed, which threads share.

    Args:
        tensor: what to hash.
        name: its dotted path, for the error.

    Returns:
        32 hexadecimal digits.

    Raises:
        CannotDigest: the tensor has no bytes: it is on the meta device, not yet materialized, or sparse.

    Example:
        >>> digest(torch.zeros(2)) == digest(torch.zeros(2))
        True
        >>> digest(torch.zeros(2)) == digest(-torch.zeros(2))
        False
    """
    with _threads(_is_plain(tensor) and tensor.nbytes > _PIECE) as pool:
        return _digest(tensor, name, pool)


def digest_all(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Hash many tensors, on as many threads as torch uses; tensors under several names are hashed once.

    Args:
        tensors: dotted path to tensor.

    Returns:
        Path to digest, in the order given.

    Raises:
        CannotDigest: as :func:`digest`, with the path.

    Example:
        >>> sorted(digest_all({"a": torch.zeros(1), "b": torch.ones(1)}))
        ['a', 'b']
    """
    first_name: dict[tuple[object, ...], str] = {}
    owners = {name: first_name.setdefault(_identity(tensor), name) for name, tensor in tensors.items()}
    work = {name: tensors[name] for name in first_name.values()}
    size = {name: tensor.nbytes if _is_plain(tensor) else 0 for name, tensor in work.items()}
    # Short ones first, and here: a thread that is busy with many of them keeps Python's lock, and each time another
    # thread is done with a long one it waits for that lock, 5 ms at a time.
    hashes = {name: _digest(tensor, name, _Here()) for name, tensor in work.items() if size[name] <= _SHORT}
    long = {name: tensor for name, tensor in work.items() if size[name] > _SHORT}
    with _threads(sum(size.values()) > _WORTH_THREADS) as pool:
        # The threads take a tensor each; the pieces of a very long one are handed to them from here, because a thread
        # that waited for other threads could wait for itself.
        whole = {n: pool.submit(_digest, t, n, _Here()) for n, t in long.items() if size[n] <= _PIECE}
        hashes |= {name: _digest(tensor, name, pool) for name, tensor in long.items() if size[name] > _PIECE}
        hashes |= {name: future.result() for name, future in whole.items()}
    return {name: hashes[owner] for name, owner in owners.items()}


class _Here:
    """Stands in for a pool where starting threads would cost more than it saves."""

    def submit(self, work: Callable[..., T], *args: Any) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(work(*args))
        return done


@contextmanager
def _threads(worth_it: bool) -> Generator[ThreadPoolExecutor | _Here, None, None]:
    """As many threads as torch uses, or none."""
    count = torch.get_num_threads()
    if worth_it and count > 1:
        with ThreadPoolExecutor(count) as pool:
            yield pool
    else:
        yield _Here()


def _is_plain(tensor: Tensor) -> bool:
    """Whether the tensor is nothing but strided bytes on some device."""
    kind = type(tensor)
    if kind is not Tensor and kind is not torch.nn.Parameter:
        return False
    return tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested)


def _digest(tensor: Tensor, name: str, pool: ThreadPoolExecutor | _Here) -> str:
    state = xxhash.xxh3_128()
    _feed(state, tensor, name, pool)
    return state.hexdigest()


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """A key that is equal only for tensors which are sure to hold the same values now."""
    if not _is_plain(tensor) or tensor.is_quantized or not tensor.data_ptr():
        return (id(tensor),)
    return (
        tensor.data_ptr(),
        tensor.device,
        tensor.dtype,
        tensor.shape,
        tensor.stride(),
        tensor.is_conj(),
        tensor.is_neg(),
    )


def digest_value(value: object, *, name: str = "value") -> str:
    """Hash any value, what ``get_extra_state`` returned for example; equal values have one digest in every process.

    Dictionaries (in any order), lists and tuples are walked, tensors hashed by their bytes; anything else by its
    pickle, in which tensors again stand for their bytes. A pickle alone would not do: the pickle of a tensor names
    addresses, so that a copy of it differs.

    Args:
        value: what to hash.
        name: its dotted path, for the error.

    Raises:
        CannotDigest: a tensor in it has no bytes, or something in it cannot be pickled.

    Example:
        >>> digest_value({"a": torch.zeros(1), "b": 1}) == digest_value({"b": 1, "a": torch.zeros(1)})
        True
        >>> digest_value([1]) == digest_value([1.0])
        False
    """
    state = xxhash.xxh3_128()
    _feed_value(state, value, name)
    return state.hexdigest()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, name: str) -> None:
        super().__init__(file, protocol=4)
        self._name = name

    def persistent_id(self, obj: object) -> str | None:
        return digest(obj, name=self._name) if isinstance(obj, Tensor) else None


def _feed_value(state: Any, value: object, name: str) -> None:
    if isinstance(value, Tensor):
        state.update(b"tensor|")
        _feed(state, value, name, _Here())
    elif isinstance(value, dict):
        items = {digest_value(k, name=name): v for k, v in cast("dict[object, object]", value).items()}
        state.update(f"{type(value).__qualname__}|{len(items)}|".encode())
        for key in sorted(items):
            state.update(key.encode())
            _feed_value(state, items[key], name)
    elif isinstance(value, (list, tuple)):
        sequence = cast("Sequence[object]", value)
        state.update(f"{type(value).__qualname__}|{len(sequence)}|".encode())
        for item in sequence:
            _feed_value(state, item, name)
    else:
        file = io.BytesIO()
        try:
            _Pickler(file, name).dump(value)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise CannotDigest(
                f"digest of {name!r}: a {type(value).__name__} in it cannot be pickled ({error}).\n"
                "  fix: return tensors, numbers, strings, lists and dictionaries from get_extra_state"
            ) from error
        state.update(f"pickle|{file.tell()}|".encode() + file.getvalue())


def _refuse(tensor: Tensor, name: str) -> None:
    if torch.nn.parameter.is_lazy(tensor):
        raise CannotDigest(
            f"digest of {name!r}: the tensor is not materialized yet (lazy module).\n"
            "  fix: run one forward pass first, so that its shape is known"
        )
    if tensor.device.type == "meta":
        raise CannotDigest(
            f"digest of {name!r}: the tensor is on the meta device and has no bytes.\n"
            "  fix: materialize it first (module.to_empty(device=...) and load its weights)"
        )
    if hasattr(tensor, "__tensor_flatten__"):
        return
    if tensor.layout != torch.strided:
        raise CannotDigest(
            f"digest of {name!r}: layout {tensor.layout} is not supported.\n"
            "  fix: hash its dense form (tensor.to_dense()) or its parts (indices, values)"
        )
    if tensor.is_nested:
        raise CannotDigest(
            f"digest of {name!r}: a nested tensor of strided layout is not supported.\n"
            "  fix: hash its parts (tensor.unbind()), or use layout=torch.jagged"
        )


def _feed(state: Any, tensor: Tensor, name: str, pool: ThreadPoolExecutor | _Here) -> None:
    _refuse(tensor, name)
    tensor = tensor.detach()
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        inner, context = flatten()
        # The ragged size of a nested tensor is a symbol that each object has its own of; its offsets say the same.
        shape = tuple(n if isinstance(n, int) else None for n in cast("Sequence[object]", tensor.shape))
        state.update(f"{type(tensor).__qualname__}|{tensor.dtype}|{shape}|{context!r}|{len(inner)}|".encode())
        for attribute in inner:
            value = getattr(tensor, attribute)
            if isinstance(value, Tensor):  # a DTensor also names its device mesh: where it lies, not what it holds
                state.update(f"{attribute}|".encode())
                _feed(state, value, f"{name}.{attribute}", pool)
        return
    state.update(f"{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    if tensor.is_quantized:
        state.update(f"{tensor.qscheme()}|{_quantizer(tensor)}|".encode())
        tensor = tensor.int_repr()
    # Conjugation and negation may be pending bits on a view; the values count.
    flat = tensor.resolve_conj().resolve_neg().contiguous()
    if flat.numel() == 0:
        return
    # A single element counts as contiguous whatever its stride, and then cannot be viewed as bytes.
    flat = flat.as_strided((flat.numel(),), (1,)).view(torch.uint8)
    if flat.numel() <= _PIECE:
        state.update(_bytes(flat.cpu(), name))
        return
    pieces = [flat[start : start + _PIECE] for start in range(0, flat.numel(), _PIECE)]
    state.update(f"{len(pieces)} pieces|".encode())
    for future in [pool.submit(_digest_piece, piece, name) for piece in pieces]:
        state.update(future.result())


def _digest_piece(piece: Tensor, name: str) -> bytes:
    return xxhash.xxh3_128_digest(_bytes(piece.cpu(), name))


def _bytes(flat: Tensor, name: str) -> Any:
    """A buffer over the memory of flat bytes on the host, which keeps them alive.

    Not by ``numpy()``, which makes the storage one that can never be resized: FSDP2 frees the gathered parameters
    between forward and backward by that, and the step fails after somebody has looked at one.
    """
    try:
        address = flat.data_ptr() if type(flat) is Tensor else 0  # of other kinds it need not be one
        buffer: Any = (ctypes.c_ubyte * flat.numel()).from_address(address) if address else flat.numpy()
    except RuntimeError as error:  # a fake tensor, or a subclass that lives in Python and does not say of what
        raise CannotDigest(
            f"digest of {name!r}: the bytes of a {type(flat).__name__} cannot be read ({error}).\n"
            "  fix: hash the tensors it is made of"
        ) from error
    if address:
        buffer.owner = flat
    return buffer


def _quantizer(tensor: Tensor) -> str:
    if tensor.qscheme() in {torch.per_tensor_affine, torch.per_tensor_symmetric}:
        return f"{tensor.q_scale()!r}|{tensor.q_zero_point()!r}"
    scales, zero_points = tensor.q_per_channel_scales().tolist(), tensor.q_per_channel_zero_points().tolist()
    return f"{tensor.q_per_channel_axis()}|{scales!r}|{zero_points!r}"
