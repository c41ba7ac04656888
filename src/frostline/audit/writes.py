"""Which of its arguments an operation says that it writes.

Knows the schemas of operations. What a schema hides is not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Of each operation that was asked about; schemas do not change.
_WRITES: dict[Any, tuple[tuple[int, str], ...]] = {}


def declared_writes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """The arguments that an operation writes in place, by its schema: tensors, or lists of them.

    Example:
        >>> import torch
        >>> [x] = declared_writes(torch.ops.aten.add_.Tensor, ("x", "y"), {})
        >>> x, list(declared_writes(torch.ops.aten.add.Tensor, ("x", "y"), {}))
        ('x', [])
    """
    places = _WRITES.get(func)
    if places is None:
        places = _WRITES[func] = tuple(
            (position, argument.name)
            for position, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        )
    for position, name in places:
        yield args[position] if position < len(args) else kwargs.get(name)
