"""Walks nested containers: the arguments of a call, what goes into a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn


def walk(value: Any, *, depth: int = 6) -> Iterator[Any]:
    """The value and all that is in it, the outer first; not into tensors, modules and text.

    Example:
        >>> [item for item in walk({"a": [1, (2,)]}) if isinstance(item, int)]
        [1, 2]
    """
    yield value
    if not depth or isinstance(value, (Tensor, nn.Module, str, bytes)):
        return
    if isinstance(value, Mapping):
        for item in cast("Mapping[Any, Any]", value).values():
            yield from walk(item, depth=depth - 1)
    elif isinstance(value, (list, tuple)):
        for item in cast("list[Any]", value):
            yield from walk(item, depth=depth - 1)
