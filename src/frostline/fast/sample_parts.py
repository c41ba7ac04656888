"""A sample taken apart into tensors and a description, and put together again.

Knows nested tuples, dictionaries, numbers and tensors; knows nothing of datasets or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import xxhash
from torch import Tensor

from frostline.checkpoint.stored import as_bytes, dtype_name
from frostline.errors import CacheError

_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}


@dataclass(frozen=True)
class Form:
    """How a value is built, without its figures.

    Attributes:
        kind: ``tensor``, ``bool``, ``int``, ``float``, ``none``, ``tuple``, ``list`` or ``dict``.
        shape: of a tensor.
        dtype: of a tensor, by its name.
        parts: of a container: key or number to form.
    """

    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    parts: tuple[tuple[str, Form], ...] = ()

    def __str__(self) -> str:
        if self.kind == "tensor":
            return f"{self.dtype} {self.shape}"
        if self.kind in ("tuple", "list", "dict"):
            return f"{self.kind}({', '.join(f'{key}: {form}' for key, form in self.parts)})"
        return self.kind

    def to_json(self) -> dict[str, Any]:
        """The form as JSON-ready values."""
        parts = [[key, form.to_json()] for key, form in self.parts]
        return {"kind": self.kind, "shape": list(self.shape), "dtype": self.dtype, "parts": parts}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Form:
        """The form that :meth:`to_json` gave."""
        parts = tuple((str(key), Form.from_json(form)) for key, form in value["parts"])
        return Form(str(value["kind"]), tuple(map(int, value["shape"])), str(value["dtype"]), parts)


def form_of(value: Any) -> Form:
    """Describe a value.

    Raises:
        CacheError: something in it is neither a tensor, an array, a number, nor a tuple, list or dictionary of them.

    Example:
        >>> print(form_of({"a": torch.zeros(2), "b": (1, 2.0)}))
        dict(a: float32 (2,), b: tuple(0: int, 1: float))
    """
    if isinstance(value, Tensor):
        return Form("tensor", tuple(value.shape), dtype_name(value.dtype))
    if isinstance(value, (np.ndarray, np.generic)):
        return form_of(_tensor(value))
    if value is None:
        return Form("none")
    for kind in _NUMBERS:
        if isinstance(value, kind):
            return Form(kind.__name__)
    if isinstance(value, Mapping):
        parts = tuple((str(key), form_of(each)) for key, each in cast("Mapping[Any, Any]", value).items())
        return Form("dict", parts=parts)
    if isinstance(value, (tuple, list)):
        parts = tuple((str(key), form_of(each)) for key, each in enumerate(cast("Sequence[Any]", value)))
        return Form("tuple" if isinstance(value, tuple) else "list", parts=parts)
    raise CacheError(
        f"a sample holds a {type(value).__name__}, which cannot be kept\n"
        "  expected: tensors and numbers, or tuples and dictionaries of them\n"
        "  fix: a dataset that turns it into one of those"
    )


def leaves(value: Any, form: Form) -> list[Tensor]:
    """The tensors of a value, in the order of its form; numbers become tensors without dimensions.

    Example:
        >>> leaves((1, None, torch.ones(1)), form_of((1, None, torch.ones(1))))
        [tensor(1), tensor([1.])]
    """
    if form.kind == "none":
        return []
    if form.kind == "dict":
        return [leaf for each, (_, part) in zip(value.values(), form.parts, strict=True) for leaf in leaves(each, part)]
    if form.parts or form.kind in ("tuple", "list"):
        return [leaf for each, (_, part) in zip(value, form.parts, strict=True) for leaf in leaves(each, part)]
    return [_tensor(value)]


def digest_of(tensors: Sequence[Tensor]) -> str:
    """The digest of leaves: of their types, shapes and bytes, in order.

    Example:
        >>> digest_of([torch.zeros(2)]) == digest_of([torch.zeros(1), torch.zeros(1)])
        False
    """
    # One state for all of them: samples are many, and each may be small.
    state = xxhash.xxh3_128()
    for tensor in tensors:
        state.update(f"{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        state.update(as_bytes(tensor.cpu().contiguous()).numpy().data)
    return state.hexdigest()


def leaf_forms(form: Form) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of each of the :func:`leaves`."""
    if form.kind == "none":
        return []
    if form.kind in ("tuple", "list", "dict"):
        return [leaf for _, part in form.parts for leaf in leaf_forms(part)]
    if form.kind == "tensor":
        return [(form.shape, getattr(torch, form.dtype))]
    return [((), {kind.__name__: dtype for kind, dtype in _NUMBERS.items()}[form.kind])]


def together(tensors: Sequence[Tensor], form: Form, *, batch: bool) -> Any:
    """Build the value of a form again from its leaves, which are only passed on.

    Args:
        tensors: as :func:`leaves` gives them, or stacked along a new first dimension.
        form: what to build.
        batch: leaves are stacked: numbers stay tensors, as a loader's collation has them.

    Example:
        >>> together([torch.tensor(3), torch.ones(1)], form_of((1, None, torch.ones(1))), batch=False)
        (3, None, tensor([1.]))
    """
    rest = iter(tensors)

    def build(form: Form) -> Any:
        if form.kind == "none":
            return None
        if form.kind == "dict":
            return {key: build(part) for key, part in form.parts}
        if form.kind in ("tuple", "list"):
            values = [build(part) for _, part in form.parts]
            return tuple(values) if form.kind == "tuple" else values
        leaf = next(rest)
        return leaf if batch or form.kind == "tensor" else leaf.item()

    return build(form)


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (np.ndarray, np.generic)):
        return torch.from_numpy(np.array(value))
    return torch.tensor(value, dtype=next(dtype for kind, dtype in _NUMBERS.items() if isinstance(value, kind)))
