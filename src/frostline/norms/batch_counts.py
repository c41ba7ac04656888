"""What the batches of a loader held, counted as they go by: samples, classes, and whether all samples are equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from frostline.errors import NormsError
from frostline.norms.class_balance import ClassCounts
from frostline.norms.feed import Feed
from frostline.norms.regroup import first_tensor, samples_of
from frostline.norms.scores import logits_of
from frostline.state.digest import digest

Progress: TypeAlias = Callable[[str, int], None]


class BatchCounts:
    """A feed that counts what goes by.

    Attributes:
        batches: how many went by.
        samples: how many they held.
        classes: by their labels.
        distinct: digests of samples, up to the second kind.

    Example:
        >>> import torch
        >>> counts = BatchCounts(Feed([torch.ones(2, 1), torch.ones(3, 1)]), "calibration", None).to_its_end()
        >>> counts.batches, counts.samples, len(counts.distinct)
        (2, 5, 1)
    """

    def __init__(self, feed: Feed, name: str, progress: Progress | None) -> None:
        self._feed, self._name, self._progress = feed, name, progress
        self.batches = self.samples = 0
        self.classes = ClassCounts()
        self.distinct: set[str] = set()

    def __iter__(self) -> Iterator[Any]:
        for batch in self._feed:
            self.batches += 1
            self.samples += samples_of(batch)
            self.classes.add(self._feed.labels(batch))
            self._see(first_tensor(batch))
            if self._progress is not None:
                self._progress(self._name, self.batches)
            yield batch

    def look_at(self, _batch: Any, output: Any) -> None:
        """See from an output how many classes the model tells apart."""
        logits = logits_of(output)
        if logits is not None and logits.ndim == 2:
            self.classes.outputs = logits.shape[1]

    def to_its_end(self) -> BatchCounts:
        """Let all batches go by, where only the counts are wanted."""
        for _ in self:
            pass
        return self

    def told(self) -> BatchCounts:
        """The counts alone, for the other processes."""
        counts = BatchCounts(Feed(()), self._name, None)
        counts.batches, counts.samples, counts.classes = self.batches, self.samples, self.classes
        counts.distinct = self.distinct
        return counts

    def require_variation(self) -> None:
        """Refuse data of which every sample is the same.

        Raises:
            NormsError: it is.
        """
        if len(self.distinct) == 1:
            raise NormsError(
                f"all samples are equal ({self.samples} of them), so the layers would get statistics of one sample\n"
                "  fix: check that the loader does not repeat one sample, and that its images are not blank"
            )

    def _see(self, inputs: Tensor | None) -> None:
        """Hash samples until two differ, which is nearly always with the second."""
        for sample in () if inputs is None else inputs:
            if len(self.distinct) > 1:
                return
            self.distinct.add(digest(sample))


def merged_counts(parts: Sequence[BatchCounts]) -> BatchCounts:
    """The counts of all processes; batches are those of the process that saw most, as they go side by side."""
    total = parts[0].told()
    total.batches, total.samples = max(part.batches for part in parts), sum(part.samples for part in parts)
    total.classes = merged_classes([part.classes for part in parts])
    total.distinct = set[str]().union(*(part.distinct for part in parts))
    return total


def merged_classes(parts: Sequence[ClassCounts]) -> ClassCounts:
    """The classes that all processes have counted."""
    total = parts[0]
    for each in parts[1:]:
        total = total.merged(each)
    return total
