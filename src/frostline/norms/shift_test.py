"""Do a layer's running statistics describe what it is given? A test for noise, and a measure of what it would matter.

The unit is the sample: the values of one image are not independent, and a test that takes each of them for a draw calls
two thirds of healthy layers shifted. Both ends are noisy, the population that was measured and the moving average. The
effect is in units that the next layer feels: how far the layer's output is from what it would be, relative to the
spread of that output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of fewer samples nothing can be learnt about how channels go together.
FEWEST = 8


@dataclass(frozen=True)
class Memory:
    """How much data a moving average rests on.

    Attributes:
        momentum: weight of the new value; ``None`` for the average over all batches.
        updates: how many updates it has seen; ``None`` if unknown.
        batch: samples a batch.
    """

    momentum: float | None
    updates: int | None
    batch: int

    @property
    def initial_weight(self) -> float:
        """What the statistics from before the first update still weigh, ``(1 - m) ** t``; 0 if unknown."""
        if self.momentum is None or self.updates is None:
            return 0.0
        return (1 - self.momentum) ** self.updates

    @property
    def noise_share(self) -> float:
        """Variance of the moving average in units of the variance of one batch: the sum of the squared weights."""
        if self.momentum is None:
            return 1 / max(self.updates or 1, 1)
        m = self.momentum
        stationary = m / (2 - m)
        if self.updates is None:
            return stationary
        return stationary * (1 - (1 - m) ** (2 * self.updates))

    @property
    def samples(self) -> float:
        """How many samples it rests on."""
        return self.batch / self.noise_share if self.noise_share else float("inf")


@dataclass(frozen=True)
class Fit:
    """How well running statistics describe a population.

    Attributes:
        p_value: chance of a deviation as large, were they estimated from this population.
        effect: what the deviation does to the output, in its standard deviations.
        noise: the effect that the noise of the moving average alone would have.
        batch_noise: the effect that the noise of one batch has, in train mode.
        mean_shift: ``(C,)``, deviation of the mean in running standard deviations.
        gain: ``(C,)``, standard deviation of the population over the running one.
        tested: whether there was anything to test: samples that differ, and at least eight of them.
    """

    p_value: float
    effect: float
    noise: float
    batch_noise: float
    mean_shift: Tensor
    gain: Tensor
    tested: bool


@dataclass(frozen=True)
class Population:
    """What was measured of the values that a layer is given.

    Attributes:
        mean: ``(C,)``.
        var: ``(C,)``, biased.
        expected_var: ``(C,)``, what the moving average of batch variances would settle at: without the variance between
            batches, and by ``n - 1``.
        sample_var: ``(C,)``, variance between samples of their means.
        square_var: ``(C,)``, variance between samples of their mean squared deviation.
        dependence: variance of a batch's mean, and of its variance, over what independent samples would give: below
            another normalization it is less than one, because that one forces the mean of its batch; with the
            population's statistics before it the mean of the population, though not its variance, is forced as well.
        samples: how many there were.
        rows: ``(K, 2C)``, some of the samples' means and squared deviations.
    """

    mean: Tensor
    var: Tensor
    expected_var: Tensor
    sample_var: Tensor
    square_var: Tensor
    dependence: tuple[float, float]
    samples: int
    rows: Tensor


def output_distance(
    mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor, eps: float, weight: Tensor | None
) -> float:
    """How far apart a layer's output lies from what it would be with the right statistics, in its own spread.

    Per channel the 2-Wasserstein distance of the two Gaussians behind the layer, weighted by ``weight``: channels whose
    weight is zero do not count, the next layer does not feel them.

    Example:
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> output_distance(zero + 0.5, one, zero, one, eps=0.0, weight=None)
        0.5
    """
    shift, gain = _shift_and_gain(mean, var, running_mean, running_var, eps)
    return _weighted(shift.square() + (gain - 1).square(), weight)


def fit(
    population: Population,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    eps: float,
    weight: Tensor | None,
    memory: Memory,
) -> Fit:
    """Compare running statistics with a population.

    Args:
        population: what was measured.
        running_mean: ``(C,)``.
        running_var: ``(C,)``.
        eps: the layer's.
        weight: the layer's scale, ``(C,)``.
        memory: what the running statistics rest on.

    Returns:
        The test and the effect.

    The statistic is the mean over the channels of the squared z of mean and variance. Channels go together, so its
    distribution without a shift is not that of independent squares; the degrees of freedom come from the samples' own
    correlations (Satterthwaite 1946), by an unbiased estimate of the sum of their squares.
    """
    mean, var = running_mean.double(), running_var.double()
    measured, remembered = 1 / max(population.samples, 1), memory.noise_share / max(memory.batch, 1)
    of_mean = population.dependence[0] * (measured + remembered)
    of_var = measured + population.dependence[1] * remembered
    scale = population.var + eps
    # A channel that does not vary between samples says nothing, and would divide by nothing.
    alive = (population.sample_var > 1e-10 * scale) & (population.square_var > 1e-10 * scale.square())
    z_mean = (population.mean - mean) / (population.sample_var * of_mean).sqrt()
    z_var = (population.expected_var - var) / (population.square_var * of_var).sqrt()
    shift, gain = _shift_and_gain(population.mean, population.var, mean, var, eps)
    spread = population.sample_var / scale + population.square_var / (4 * scale.square())
    tested = bool(alive.any()) and population.rows.shape[0] >= FEWEST
    batch_noise = _weighted(spread / max(memory.batch, 1), weight)
    return Fit(
        p_value=_p_value(z_mean, z_var, alive, population.rows) if tested else 1.0,
        effect=_weighted(shift.square() + (gain - 1).square(), weight),
        noise=batch_noise * memory.noise_share**0.5,
        batch_noise=batch_noise,
        mean_shift=shift,
        gain=gain,
        tested=tested,
    )


def _shift_and_gain(
    mean: Tensor, var: Tensor, running_mean: Tensor, running_var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    sd = (running_var.double() + eps).clamp(min=1e-300).sqrt()
    return (mean.double() - running_mean.double()) / sd, (var.double() + eps).clamp(min=0).sqrt() / sd


def _weighted(squares: Tensor, weight: Tensor | None) -> float:
    importance = torch.ones_like(squares) if weight is None else weight.detach().double().square()
    total = importance.sum()
    return float(((squares * importance).sum() / total).sqrt()) if total > 0 else 0.0


def _p_value(z_mean: Tensor, z_var: Tensor, alive: Tensor, rows: Tensor) -> float:
    both = torch.cat([alive, alive])
    statistic = float(torch.cat([z_mean, z_var])[both].square().mean())
    columns = rows[:, both].double()
    columns = (columns - columns.mean(0)) / columns.std(0).clamp(min=1e-150)
    k, width = columns.shape
    gram = columns @ columns.T
    off = gram.square().sum() - gram.diagonal().square().sum()
    # Mean of (x_i . x_j)^2 over pairs is the trace of the squared correlation matrix, plus what chance adds.
    trace = max(float(off) / (k * (k - 1)), float(width))
    freedom = width * width / trace
    return float(torch.special.gammaincc(torch.tensor(freedom / 2.0), torch.tensor(statistic * freedom / 2.0)))
