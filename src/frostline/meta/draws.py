"""Random draws that are the same on every platform and for every version of Python, NumPy and PyTorch.

Whole numbers from BLAKE2b in counter mode; knows nothing of classes or tasks. The generators of Python, NumPy and
PyTorch promise their raw numbers at most, and change how they shuffle from version to version.
"""

from __future__ import annotations

import hashlib
import json

WORD = 2**64
_BLOCK = 64


class Draws:
    """A stream of exact whole numbers that depends on its key alone.

    Keys that differ in anything give independent streams, so that no two purposes ever share numbers.

    Args:
        key: whole numbers and texts.

    Example:
        >>> draws = Draws("docs", 0)
        >>> [draws.below(6) for _ in range(5)]
        [3, 4, 2, 2, 3]
        >>> Draws("docs", 0).sample(100, 3) == Draws("docs", 0).sample(100, 5)[:3]
        True

    Source:
        Aumasson et al., "BLAKE2: simpler, smaller, fast as MD5", 2013; RFC 7693.
    """

    def __init__(self, *key: int | str) -> None:
        # JSON, because joined texts would let ("a", "bc") and ("ab", "c") share a stream.
        self._key = hashlib.blake2b(json.dumps(key).encode(), digest_size=_BLOCK).digest()
        self._counter = 0
        self._block = b""

    def word(self) -> int:
        """The next whole number below 2 ** 64."""
        if not self._block:
            count = self._counter.to_bytes(8, "little")
            self._block = hashlib.blake2b(count, key=self._key, digest_size=_BLOCK).digest()
            self._counter += 1
        word, self._block = self._block[:8], self._block[8:]
        return int.from_bytes(word, "little")

    def below(self, bound: int) -> int:
        """The next whole number from 0 to ``bound`` - 1, each as likely as any other; ``bound`` is 1 to 2 ** 64."""
        # What lies above the last whole multiple would make small remainders likelier: it is drawn again.
        limit = WORD - WORD % bound
        while True:
            word = self.word()
            if word < limit:
                return word % bound

    def sample(self, population: int, count: int) -> list[int]:
        """``count`` different numbers from 0 to ``population`` - 1, every sequence of them as likely as any other.

        A longer sample from the same place in a stream begins with the shorter one.
        """
        # Fisher and Yates' shuffle, stopped early; only what was moved is kept.
        moved: dict[int, int] = {}
        chosen: list[int] = []
        for place in range(count):
            other = place + self.below(population - place)
            chosen.append(moved.get(other, other))
            moved[other] = moved.get(place, place)
        return chosen
