"""Which sample lies in which slot of a cache, whatever has been added, removed, changed or put in another order since.

Knows keys and numbers; knows nothing of what the samples or the slots hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from frostline.checkpoint.stored import StoredTensor, in_memory

Ints = NDArray[np.int64]
KEY_BYTES = 16


@dataclass(frozen=True)
class SampleTable:
    """The slots that were ever given out, and the order of the dataset that the cache was last filled for.

    A slot is given to a sample for good: one that is gone leaves it unused, and one that has changed has another key
    and gets a new one. So what lies in a slot never has to be written again.

    Attributes:
        keys: of each slot, shape (slots, 16).
        indices: the index at which the sample of each slot stood when it was met first.
        order: the slot of each sample of the dataset.
    """

    keys: NDArray[np.uint8]
    indices: Ints
    order: Ints

    @staticmethod
    def empty() -> SampleTable:
        """No slots, no samples."""
        return SampleTable(np.empty((0, KEY_BYTES), np.uint8), np.empty(0, np.int64), np.empty(0, np.int64))

    def placed(self, keys: NDArray[np.uint8]) -> SampleTable:
        """The table for a dataset with these keys: known ones keep their slot, others get the next ones.

        Example:
            >>> table = SampleTable.empty().placed(digests(["a", "b"])).placed(digests(["b", "c"]))
            >>> table.order.tolist(), len(table.keys)
            ([1, 2], 3)
        """
        slots = {key.tobytes(): slot for slot, key in enumerate(self.keys)}
        order = np.empty(len(keys), np.int64)
        new: list[int] = []
        for index, key in enumerate(keys):
            slot = slots.setdefault(key.tobytes(), len(slots))
            if slot == len(self.keys) + len(new):
                new.append(index)
            order[index] = slot
        return SampleTable(
            np.concatenate([self.keys, keys[new]]), np.concatenate([self.indices, np.array(new, np.int64)]), order
        )

    @property
    def moved(self) -> Ints:
        """The samples that stand at another index than where they were met first."""
        return np.flatnonzero(self.indices[self.order] != np.arange(len(self.order)))

    def tensors(self) -> dict[str, StoredTensor]:
        """What a file of it holds."""
        arrays: dict[str, Any] = {"keys": self.keys, "indices": self.indices, "order": self.order}
        return {name: in_memory(torch.from_numpy(array)) for name, array in arrays.items()}

    @staticmethod
    def of(tensors: dict[str, torch.Tensor]) -> SampleTable:
        """The table of a file.

        Raises:
            ValueError: its parts do not go together.
        """
        keys, indices, order = (tensors[name].numpy() for name in ("keys", "indices", "order"))
        fits = keys.shape == (len(indices), KEY_BYTES) and (
            not len(order) or 0 <= order.min() <= order.max() < len(keys)
        )
        if not fits:
            raise ValueError("the table of samples does not fit together")
        return SampleTable(keys, indices, order)


def digests(texts: Sequence[str]) -> NDArray[np.uint8]:
    """Texts as keys of 16 bytes each, shape (texts, 16).

    Example:
        >>> digests(["a"]).shape, bool((digests(["a"]) == digests(["b"])).all())
        ((1, 16), False)
    """
    joined = b"".join(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")) for text in texts)
    return np.frombuffer(joined, np.uint8).reshape(len(texts), KEY_BYTES)


def numbered(texts: Sequence[str]) -> list[str]:
    r"""The same texts, of which a second and later occurrence say so, so that no two are equal.

    Example:
        >>> numbered(["a", "b", "a"])
        ['a', 'b', 'a\x002']
    """
    seen: dict[str, int] = {}
    result: list[str] = []
    for text in texts:
        seen[text] = seen.get(text, 0) + 1
        result.append(text if seen[text] == 1 else f"{text}\0{seen[text]}")
    return result


def ranges(numbers: Ints) -> tuple[tuple[int, int], ...]:
    """Numbers as ranges, each its first and the one behind its last, in the order given.

    Example:
        >>> ranges(np.array([3, 4, 5, 9]))
        ((3, 6), (9, 10))
    """
    if not len(numbers):
        return ()
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts, stops = [0, *breaks.tolist()], [*breaks.tolist(), len(numbers)]
    return tuple((int(numbers[a]), int(numbers[b - 1]) + 1) for a, b in zip(starts, stops, strict=True))


def expanded(pairs: Sequence[tuple[int, int]]) -> Ints:
    """The numbers that :func:`ranges` were made of."""
    parts = [np.arange(start, stop, dtype=np.int64) for start, stop in pairs]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def chunks(numbers: Ints, size: int) -> Iterator[Ints]:
    """Numbers in runs of ``size``, the last one shorter."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
