"""Normalizing with statistics that are given as values: pure functions of tensors, differentiable twice.

They write to nothing, so that one layer can be run for several tasks at a time, in threads or under ``vmap``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """Mean and variance per channel, as values.

    Attributes:
        mean: shape (C,).
        var: shape (C,), divided by the count, not by one less.
        count: values per channel that they were made of; 0 where that is not known.
    """

    mean: Tensor
    var: Tensor
    count: int = 0

    @property
    def unbiased(self) -> Tensor:
        """The variance divided by one less than the count, as PyTorch's running variances have it."""
        return self.var * (self.count / (self.count - 1)) if self.count > 1 else self.var

    def merged(self, other: LayerStatistics) -> LayerStatistics:
        """The statistics of both sets of values together.

        Source: Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance", equation 2.1.

        Example:
            >>> one, two = of_batch(torch.tensor([[1.0], [3.0]])), of_batch(torch.tensor([[5.0], [7.0]]))
            >>> one.merged(two).mean.item(), one.merged(two).var.item()
            (4.0, 5.0)
        """
        count = self.count + other.count
        share = other.count / count
        delta = other.mean - self.mean
        var = self.var * (1 - share) + other.var * share + delta.square() * (share * (1 - share))
        return LayerStatistics(self.mean + delta * share, var, count)

    def detached(self) -> LayerStatistics:
        """The same values without a graph."""
        return LayerStatistics(self.mean.detach(), self.var.detach(), self.count)


def of_batch(x: Tensor) -> LayerStatistics:
    """The statistics of a batch of shape (N, C, ...), with their graph.

    Half precision is accumulated in float32, as PyTorch's batch norm does.
    """
    values = x.float() if x.dtype.itemsize < 4 else x
    var, mean = torch.var_mean(values, [d for d in range(x.ndim) if d != 1], correction=0)
    return LayerStatistics(mean, var, x.numel() // x.shape[1])


def normalized_by_batch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, observe: bool, vmapped: bool = False
) -> tuple[Tensor, LayerStatistics | None]:
    """Normalize a batch with its own statistics by PyTorch's kernel.

    Args:
        x: shape (N, C, ...).
        weight: shape (C,).
        bias: shape (C,).
        eps: added to the variance.
        observe: whether to return the statistics too, without a graph. The kernel has them as a by-product.
        vmapped: whether this runs under ``vmap``, where the kernel cannot write them into a buffer: they are computed
            once more.
    """
    if not observe or vmapped:
        y = functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
        return y, of_batch(x.detach()) if observe else None
    dtype = x.dtype if x.dtype.itemsize >= 4 else torch.float32
    mean, var = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
    y = functional.batch_norm(x, mean, var, weight, bias, True, 1.0, eps)
    count = x.numel() // x.shape[1]
    # Not in place: the backward pass keeps the buffer, and notices.
    return y, LayerStatistics(mean, var * ((count - 1) / count), count)


def normalized_by(
    x: Tensor, statistics: LayerStatistics, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Normalize with given statistics; the gradient goes into them too, if they have a graph.

    Example:
        >>> x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
        >>> normalized_by(x, of_batch(x), None, None, 0.0).flatten().tolist()
        [-1.0, 1.0]
    """
    scale = (statistics.var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -statistics.mean * scale if bias is None else bias - statistics.mean * scale
    shape = [1, -1, *[1] * (x.ndim - 2)]
    return torch.addcmul(shift.view(shape).to(x.dtype), x, scale.view(shape).to(x.dtype))


def normalized_by_sample(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, over_channels: bool
) -> Tensor:
    """Normalize each sample by itself: each channel over space, or all channels together."""
    mean, var = _own_moments(x, over_channels=over_channels)
    return _standard(x, mean, var, weight, bias, eps)


def normalized_by_task(
    x: Tensor,
    context: LayerStatistics,
    share: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    over_channels: bool,
) -> Tensor:
    """Normalize each sample with a blend of the context's statistics and its own.

    Args:
        x: shape (N, C, ...).
        context: statistics of the support set.
        share: their weight, between 0 and 1, a scalar.
        weight: shape (C,).
        bias: shape (C,).
        eps: added to the variance.
        over_channels: each sample's own moments are taken over channels and space (TaskNorm-L), or over space alone
            (TaskNorm-I).

    Source: Bronskill et al. 2020, "TaskNorm: Rethinking Batch Normalization for Meta-Learning", equations 5 to 7.
    """
    shape = [1, -1, *[1] * (x.ndim - 2)]
    own_mean, own_var = _own_moments(x, over_channels=over_channels)
    context_mean, context_var = context.mean.view(shape), context.var.view(shape)
    mean = share * context_mean + (1 - share) * own_mean
    var = share * (context_var + (context_mean - mean).square())
    var = var + (1 - share) * (own_var + (own_mean - mean).square())
    return _standard(x, mean, var, weight, bias, eps)


def _own_moments(x: Tensor, *, over_channels: bool) -> tuple[Tensor, Tensor]:
    values = x.float() if x.dtype.itemsize < 4 else x
    dims = list(range(1 if over_channels else 2, x.ndim))
    var, mean = torch.var_mean(values, dims, correction=0, keepdim=True)
    return mean, var


def _standard(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    shape = [1, -1, *[1] * (x.ndim - 2)]
    y = ((x - mean) * (var + eps).rsqrt()).to(x.dtype)
    if weight is not None:
        y = y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)
