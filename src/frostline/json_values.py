"""Values that JSON can hold; pure Python, knows nothing of models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast


def finite(value: Any) -> Any:
    """The same value with ``nan`` and ``inf`` as strings, because JSON has no numbers for them.

    Example:
        >>> finite({"a": [1.0, float("inf")]})
        {'a': [1.0, 'inf']}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in cast("list[Any]", value)]
    return value
