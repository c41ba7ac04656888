"""How several processes share a batch so that a step means what it means on one process.

accelerate fills the last batch of an epoch up with samples of the first; a step over three samples would become one
over thirty-two.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import BatchSampler, Sampler


class Shares(BatchSampler):
    """The batches of one process: every so manieth sample of each batch that all of them take together.

    Every process gets as many batches. Where a batch has fewer samples than there are processes, those that would get
    none get its first, and :meth:`weight` of that is 0.

    Args:
        sampler: the order of all samples.
        batch_size: of all processes together.
        drop_last: leave out a last batch that is not full.
        process: which process this is.
        processes: how many there are.

    Example:
        >>> [list(Shares(range(5), 4, drop_last=False, process=p, processes=2)) for p in (0, 1)]
        [[[0, 2], [4]], [[1, 3], [4]]]
        >>> [Shares(range(5), 4, drop_last=False, process=p, processes=2).weight(1) for p in (0, 1)]
        [2.0, 0.0]
    """

    sampler: Sampler[int]

    def __init__(
        self, sampler: Sampler[int], batch_size: int, *, drop_last: bool, process: int, processes: int
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self._process, self._processes = process, processes

    def __iter__(self) -> Iterator[list[int]]:
        for batch in super().__iter__():
            yield batch[self._process :: self._processes] or batch[:1]

    def count(self, step: int) -> int:
        """How many samples all processes together have in a step, counted from 0."""
        sized: int = len(self.sampler)  # type: ignore[arg-type]
        return min(self.batch_size, sized - step * self.batch_size)

    def weight(self, step: int) -> float:
        """What the mean loss of this process counts in the mean over processes, so that each sample counts the same."""
        own = len(range(self._process, self.count(step), self._processes))
        return own * self._processes / self.count(step)
