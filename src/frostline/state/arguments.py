"""How the inputs that a user gives for a run go into a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: of a tensor, a tuple or list of arguments, or a mapping of names.

    Example:
        >>> arguments_of(1), arguments_of([1, 2]), arguments_of({"x": 1})
        (((1,), {}), ((1, 2), {}), ((), {'x': 1}))
    """
    if isinstance(inputs, Mapping):
        return (), dict(cast("Mapping[str, Any]", inputs))
    return tuple(cast("tuple[Any, ...]", inputs)) if isinstance(inputs, (tuple, list)) else (inputs,), {}
