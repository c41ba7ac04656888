"""How far two names are apart, as fingers slip: letters left out, added, exchanged, swapped with their neighbours."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=4_096)
def distance(one: str, other: str) -> int:
    """How many slips make one name of the other.

    Example:
        >>> distance("name_parameters", "named_parameters"), distance("require_grda", "requires_grad")
        (1, 2)
    """
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        above, before = before, row
        row = [i]
        for j, b in enumerate(other, start=1):
            slips = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                slips = min(slips, above[j - 2] + 1)
            row.append(slips)
    return row[-1]
