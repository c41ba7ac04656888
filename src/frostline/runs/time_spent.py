"""Where the time of a run goes: seconds under names, measured by the code that spends them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class SpentRow:
    """One name of an account.

    Attributes:
        name: what the time was spent on.
        seconds: how long in all.
        share: of the whole account, in 0..1.
    """

    name: str
    seconds: float
    share: float


class TimeSpent:
    """Seconds added up under names.

    A block stops the clock of the block around it, so that no second is counted twice: the names add up to the time
    spent inside any block. Blocks nest as ``with`` statements do, in one thread; the same name may be opened within
    itself. A block that an exception leaves is counted up to there. Entering and leaving one takes about half a
    microsecond.

    Nothing is synchronized. What an accelerator does by itself meanwhile is counted where the host waits for it: a
    block that only launches kernels is short, and the block that reads their result, such as ``float(loss)``, has
    their time. To see a part by itself there, read its result inside its block.

    Args:
        clock: gives seconds that never go back.

    Example:
        >>> ticks = iter([0.0, 1.0, 4.0, 6.0])
        >>> spent = TimeSpent(lambda: next(ticks))
        >>> with spent("head"):
        ...     with spent("loading"):
        ...         pass
        >>> spent.to_json()
        {'head': 3.0, 'loading': 3.0}
    """

    __slots__ = ("_blocks", "_clock", "_mark", "_open", "_seconds")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._mark = 0.0
        self._open: list[str] = []
        self._seconds: dict[str, float] = {}
        self._blocks: dict[str, _Block] = {}

    def __call__(self, name: str) -> _Block:
        """A block whose time is counted under this name."""
        block = self._blocks.get(name)
        if block is None:
            block = self._blocks[name] = _Block(self, name)
        return block

    def waits(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Give the items one by one, and count under the name how long each was waited for.

        Where the iteration begins is counted too: a loader starts its workers there.

        Example:
            >>> spent = TimeSpent()
            >>> list(spent.waits("loading", "ab")), list(spent.to_json())
            (['a', 'b'], ['loading'])
        """
        block = self(name)
        with block:
            iterator = iter(items)
        while True:
            with block:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere. An open block goes on counting.

        Raises:
            ValueError: they are negative or no finite number.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"{name!r}: {seconds} s cannot have been spent")
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def rows(self) -> tuple[SpentRow, ...]:
        """The names in the order in which they were first used; open blocks up to now.

        Example:
            >>> spent = TimeSpent()
            >>> spent.add("prefix", 3.0), spent.add("head", 1.0)
            (None, None)
            >>> [(row.name, row.share) for row in spent.rows()]
            [('prefix', 0.75), ('head', 0.25)]
        """
        seconds = self.to_json()
        whole = sum(seconds.values())
        return tuple(SpentRow(name, spent, spent / whole if whole else 0.0) for name, spent in seconds.items())

    def to_json(self) -> dict[str, float]:
        """Name to seconds, as JSON-ready values; open blocks up to now."""
        if self._open:
            self._turn()
        return dict(self._seconds)

    def _turn(self) -> None:
        """Give the time since the last turn to the innermost block."""
        now = self._clock()
        self._seconds[self._open[-1]] += now - self._mark
        self._mark = now

    def begin(self, name: str) -> None:
        """Open a block; :meth:`end` closes it. For code that a ``with`` statement does not fit."""
        if self._open:
            self._turn()
        else:
            self._mark = self._clock()
        self._open.append(name)
        self._seconds.setdefault(name, 0.0)

    def end(self) -> None:
        """Close the innermost block.

        Raises:
            IndexError: none is open.
        """
        self._turn()
        self._open.pop()


class _Block:
    """The ``with`` side of a name; keeps nothing of its own, so that one serves every time."""

    __slots__ = ("_name", "_spent")

    def __init__(self, spent: TimeSpent, name: str) -> None:
        self._spent = spent
        self._name = name

    def __enter__(self) -> None:
        self._spent.begin(self._name)

    def __exit__(self, *_: object) -> None:
        self._spent.end()
