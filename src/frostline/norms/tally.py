"""What one pass over data showed of one layer: moments, and how they scatter from sample to sample and batch to batch.

Everything is accumulated in float64 and in memory that does not grow with the number of batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from frostline.norms.moments import Moments
from frostline.norms.observe import Seen

# Samples that are kept to learn how channels go together, and batches whose means are kept to see whether they fall
# into two kinds.
KEPT_SAMPLES = 256
KEPT_BATCHES = 256


@dataclass
class Scatter:
    """Mean and spread of rows, streaming.

    Attributes:
        n: rows so far.
        mean: mean row.
        m2: sum of squared deviations.
    """

    n: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))
    m2: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def add(self, rows: Tensor) -> None:
        """Take in ``(n, ...)`` rows."""
        n = rows.shape[0]
        mean = rows.mean(0)
        m2 = (rows - mean).square().sum(0)
        delta = mean - self.mean
        total = self.n + n
        self.m2 = self.m2 + m2 + delta.square() * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total

    @property
    def var(self) -> Tensor:
        """Unbiased variance of a row."""
        return self.m2 / max(self.n - 1, 1)


class Tally:
    """What one layer saw in one pass.

    Attributes:
        moments: of all values.
        calls: of all values, by the number of the call within the forward pass.
        batch_means: scatter of the batches' means.
        batch_vars: scatter of the batches' unbiased variances, what the moving average is fed with.
        within: mean over the batches of the variance of the samples' means within a batch.
        means: the first batches' means, one a row, in their order.
        batch_samples: samples of the largest batch.
        positions: values that a sample has in a channel.
    """

    def __init__(self) -> None:
        self.moments: Moments | None = None
        self.calls: dict[int, Moments] = {}
        self.batch_means = Scatter()
        self.batch_vars = Scatter()
        self.within = Scatter()
        self.means: list[Tensor] = []
        self.batch_samples = 0
        self.positions = 1
        self.samples = 0
        self._shift: Tensor | None = None
        self._instances = False
        self._pairs = Scatter()
        self._cross = 0.0
        self._kept: Tensor | None = None
        self._choice = torch.Generator().manual_seed(0)

    def add(self, seen: Seen) -> None:
        """Take in one call."""
        new = Moments.of_seen(seen)
        self.moments = new if self.moments is None else self.moments.merged(new)
        self.calls[seen.call] = self.calls[seen.call].merged(new) if seen.call in self.calls else new
        rows = seen.mean.shape[0]
        self.batch_means.add(new.mean[None])
        self.batch_vars.add(new.var(unbiased=True)[None])
        if rows > 1:
            self.within.add(seen.mean.var(0)[None])
        if len(self.means) < KEPT_BATCHES:
            self.means.append(new.mean)
        self.batch_samples = max(self.batch_samples, rows)
        self.positions = max(self.positions, seen.positions)
        self._add_samples(seen)

    @property
    def sample_var(self) -> Tensor:
        """Variance between samples of their means, ``(C,)``."""
        return self._pairs.var[0]

    @property
    def square_var(self) -> Tensor:
        """Variance between samples of their mean squared deviation from the population's mean, ``(C,)``."""
        delta = self._shift_of_squares()
        var = self._pairs.m2[1] + 4 * delta.square() * self._pairs.m2[0] - 4 * delta * self._cross
        return (var / max(self.samples - 1, 1)).clamp(min=0)

    def sample_rows(self) -> Tensor:
        """Some samples' means and mean squared deviations, ``(K, 2C)``, to learn how channels go together."""
        assert self._kept is not None
        delta = self._shift_of_squares()
        a, b = self._kept[:, 0], self._kept[:, 1]
        return torch.cat([a, b - 2 * delta * a + delta.square()], dim=1)

    def _shift_of_squares(self) -> Tensor:
        """How far the population's mean lies from where the squares were taken; instance norm takes samples' own."""
        return torch.zeros_like(self._pairs.mean[0]) if self._instances else self._pairs.mean[0]

    def _add_samples(self, seen: Seen) -> None:
        # The squares are taken about the first batch's mean; what they are about the population's follows at the end.
        if self._shift is None:
            self._shift = seen.mean.mean(0)
        a = seen.mean - self._shift
        self._instances = seen.instances
        rows = torch.stack([a, seen.var if seen.instances else seen.var + a.square()], dim=1)
        before, n = self._pairs.n, rows.shape[0]
        delta = rows.mean(0) - self._pairs.mean
        centred = rows - rows.mean(0)
        self._cross = (
            self._cross + (centred[:, 0] * centred[:, 1]).sum(0) + delta[0] * delta[1] * (before * n / (before + n))
            if before
            else (centred[:, 0] * centred[:, 1]).sum(0)
        )
        self._pairs.add(rows)
        self.samples = self._pairs.n
        self._keep(rows, before)

    def _keep(self, rows: Tensor, before: int) -> None:
        """Reservoir sampling: each sample is kept with the same chance."""
        free = KEPT_SAMPLES - before
        if free > 0:
            head = rows[:free]
            self._kept = head.clone() if self._kept is None else torch.cat([self._kept, head])
            rows, before = rows[free:], before + len(head)
        if not len(rows):
            return
        assert self._kept is not None
        ranks = torch.arange(before + 1, before + len(rows) + 1, dtype=torch.float64)
        places = (torch.rand(len(rows), generator=self._choice, dtype=torch.float64) * ranks).long()
        for i in (places < KEPT_SAMPLES).nonzero().flatten().tolist():
            self._kept[places[i]] = rows[i]
