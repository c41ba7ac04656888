"""What torch puts into a pickle: tensors, parameters, storages, dtypes, devices and sizes, turned into data.

Knows the calls that torch's own pickles make; knows nothing of files: where the bytes of a storage are is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

from frostline.checkpoint.readers.file_tensor import (
    MOST,
    MOST_DIMENSIONS,
    MOST_REPEATED,
    FileTensor,
    Misfit,
    check_shape,
    check_strides,
)
from frostline.checkpoint.readers.pickle_names import Damaged, Names, Opaque
from frostline.checkpoint.readers.source import Extent

# Names of storage types, before "Storage", in torch and in torch.cuda.
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
}
_QUANTIZED = {
    "QInt8": torch.qint8,
    "QInt32": torch.qint32,
    "QUInt8": torch.quint8,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}
# Quantized tensors, which torch reads with its own safe reader, and whole.
_RARE = (
    "torch._utils._rebuild_qtensor",
    "torch.per_tensor_affine",
    "torch.per_tensor_symmetric",
    "torch.per_channel_affine",
    "torch.per_channel_symmetric",
    "torch.per_channel_affine_float_qparams",
)
# Tensors without values that lie one after another, and what they are called.
_OTHERS = {
    "torch._utils._rebuild_sparse_tensor": "torch.Tensor (sparse)",
    "torch._utils._rebuild_nested_tensor": "torch.Tensor (nested)",
    "torch._utils._rebuild_meta_tensor_no_storage": "torch.Tensor (meta)",
    "torch.serialization._get_layout": "torch.layout",
}
_PLAIN_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")


@dataclass(frozen=True, eq=False)
class StorageType(Opaque):
    """The type of a storage.

    Attributes:
        dtype: of its elements; bytes, where the type does not say.
    """

    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Storage(Opaque):
    """A storage of a checkpoint, or a view of one.

    Attributes:
        dtype: of its elements; bytes, where the type does not say.
        numel: how many elements.
        extent: the bytes of the storage, of which a view is a part.
        place: equal for two storages of one checkpoint if and only if they are one.
        start: where in the bytes it begins.
    """

    dtype: torch.dtype
    numel: int
    extent: Extent
    place: Hashable
    start: int = 0


class TorchNames(Names):
    """Names in a pickle of torch.

    Attributes:
        rare: kinds of tensors that only torch reads, and then only as a whole file.
    """

    def __init__(self, budget: int) -> None:
        """Begin a pickle of so many bytes."""
        super().__init__(
            {
                "torch._utils._rebuild_tensor": self._tensor,
                "torch._utils._rebuild_tensor_v2": self._tensor,
                "torch._utils._rebuild_tensor_v3": self._tensor_of_dtype,
                "torch._utils._rebuild_parameter": _first,
                "torch._utils._rebuild_parameter_with_state": _first,
                "torch._tensor._rebuild_from_type_v2": self._from_type,
                "torch.Size": _size,
                "torch.device": _device,
                **{name: self._note(name) for name in _RARE},
                **{name: _stand_in(kind) for name, kind in _OTHERS.items()},
                **dict.fromkeys(_PLAIN_TYPES, _no_call),
            },
            budget,
        )
        self.rare: set[str] = set()
        # Elements, distance to the last one, and whether it is contiguous, for a shape and strides.
        self._layouts: dict[tuple[object, object], tuple[int, int, bool]] = {}

    def _look_up(self, dotted: str) -> object:
        """Adds the names that are not called: storage types and dtypes."""
        module, _, name = dotted.rpartition(".")
        if module in {"torch", "torch.cuda", "torch.storage"}:
            short = name.removesuffix("Storage")
            if short != name:
                if short in {"Untyped", "_Untyped"}:
                    return StorageType(dotted, torch.uint8)
                if short in _STORAGES:
                    return StorageType(dotted, _STORAGES[short])
                if short in _QUANTIZED:
                    self.rare.add(dotted)
                    return StorageType(dotted, _QUANTIZED[short])
            found = getattr(torch, name, None) if module == "torch" else None
            if isinstance(found, torch.dtype):
                return found
        return super()._look_up(dotted)

    def _note(self, name: str) -> Callable[[tuple[Any, ...]], object]:
        def build(_: tuple[Any, ...]) -> object:
            self.rare.add(name)
            return Opaque(name)

        return build

    def _tensor(self, args: tuple[Any, ...]) -> object:
        storage, offset, shape, stride, *rest = args
        if type(storage) is not Storage:
            return self._other(storage)
        if len(rest) > 2 and rest[2]:  # conjugated or negated
            self.rare.add("a tensor whose values are still to be conjugated or negated")
            return Opaque("torch.Tensor")
        return self._place(storage, storage.dtype, offset, shape, stride)

    def _tensor_of_dtype(self, args: tuple[Any, ...]) -> object:
        storage, offset, shape, stride, _requires_grad, _hooks, dtype, *metadata = args
        if not isinstance(dtype, torch.dtype):
            raise Damaged("a dtype that is none")
        if type(storage) is not Storage:
            return self._other(storage)
        if metadata and metadata[0]:
            self.rare.add("a tensor whose values are still to be conjugated or negated")
            return Opaque("torch.Tensor")
        return self._place(storage, dtype, offset, shape, stride)

    def _other(self, storage: object) -> Opaque:
        # Of a file that is refused, the names that are still to come are wanted too.
        if not (self.wanted and isinstance(storage, Opaque)):
            raise Damaged("a tensor without a storage")
        return Opaque("torch.Tensor")

    def _place(self, storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> FileTensor:
        if type(offset) is not int or not 0 <= offset < MOST or not isinstance(size, tuple):
            raise Damaged("a tensor without a place")
        # The layers of a model have few shapes. Only flat tuples are looked up: hashing others can take for ever.
        flat = isinstance(stride, tuple) and {*map(type, size), *map(type, stride)} <= {int}
        layout = self._layouts.get((size, stride)) if flat else None
        if layout is None:
            try:
                layout = (check_shape(size), *check_strides(size, stride))
            except Misfit as error:
                raise Damaged(str(error)) from error
            self._layouts[size, stride] = layout
        numel, far, contiguous = layout
        itemsize = dtype.itemsize
        begin = storage.start + offset * itemsize
        if numel:
            held = storage.numel * storage.dtype.itemsize
            if (offset + far + 1) * itemsize > held:
                raise Damaged(
                    f"a storage of {held:,} bytes for a tensor of shape {size} and {dtype}, {offset:,} elements on"
                )
            if not contiguous and len(size) > MOST_DIMENSIONS:
                raise Damaged(f"a tensor of {len(size)} dimensions that is not contiguous")
            if not contiguous and numel > far + 1 and numel * itemsize > max(MOST_REPEATED, held):
                raise Damaged(f"a storage of {held:,} bytes that a tensor repeats to {numel * itemsize:,}")
            place = (storage.place, begin, size, stride, dtype)
        else:  # tensors without elements share nothing
            contiguous, place = True, object()
        return FileTensor(tuple(size), dtype, place, storage.extent, begin, None if contiguous else stride)

    def _from_type(self, args: tuple[Any, ...]) -> object:
        """A tensor with attributes of its own, which are left out; of a subclass, only if torch itself knows it."""
        function, kind, inner, _state = args
        if not isinstance(kind, Opaque) or kind.name not in _PLAIN_TYPES:
            name = kind.name if isinstance(kind, Opaque) else type(kind).__name__
            self.rare.add(f"tensors of the type {name}")
            return Opaque(name)
        return self.call(function, inner)


def count_storage(kind: object, numel: object) -> tuple[StorageType, int]:
    """Check a storage's type and number of elements, as a persistent id names them.

    Raises:
        Damaged: they are none.
    """
    if not isinstance(kind, StorageType):
        raise Damaged("a storage of a type that is none")
    if type(numel) is not int or not 0 <= numel < MOST:
        raise Damaged("a storage without a size")
    return kind, numel


def _first(args: tuple[Any, ...]) -> object:
    """What a parameter is made of."""
    if not args or not isinstance(args[0], (FileTensor, Opaque)):
        raise Damaged("a parameter that is not made of a tensor")
    return args[0]


def _stand_in(name: str) -> Callable[[tuple[Any, ...]], object]:
    return lambda _: Opaque(name)


def _no_call(_: tuple[Any, ...]) -> object:
    raise Damaged("a tensor in a form that torch has not written for years")


def _size(args: tuple[Any, ...]) -> torch.Size:
    if len(args) != 1:
        raise Damaged("a size that is none")
    check_shape(args[0])
    return torch.Size(args[0])


def _device(args: tuple[Any, ...]) -> torch.device:
    if not args or type(args[0]) is not str or not all(type(each) is int for each in args[1:]):
        raise Damaged("a device that is none")
    return torch.device(*args)
