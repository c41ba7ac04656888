"""Dotted paths, ready to be asked what lies below one: rules ask for every module of models with 100,000 tensors."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator


class Prefixes:
    """Paths in an order of their own, found by what they begin with."""

    def __init__(self, paths: Iterable[str]) -> None:
        order = {path: place for place, path in enumerate(paths)}
        self._sorted = sorted(order)
        self._order = order

    def below(self, path: str) -> Iterator[str]:
        """The paths below one, without itself, in the order in which they were given.

        Example:
            >>> list(Prefixes(["b.x", "b", "a.y", "b2.z", "b.c.w"]).below("b"))
            ['b.x', 'b.c.w']
        """
        if not path:
            return iter(self._order)
        # All that begin with `b.` stand between `b.` and `b/`, the character behind the dot.
        first, last = bisect_left(self._sorted, f"{path}."), bisect_left(self._sorted, f"{path}/")
        return iter(sorted(self._sorted[first:last], key=self._order.__getitem__))
