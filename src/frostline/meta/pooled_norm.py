"""Batch norm, ReLU and max pooling in one step: fewer passes over memory, less of it kept, differentiable twice.

Max pooling commutes with a growing function, so that what is pooled is the input, and only what was picked is
normalized; gradients are made where something was picked, and go through the normalization as a whole from there. Of
tensors of full size only the input is kept, where PyTorch's three operators keep two, and seven once their double
backward has run.

Everything is computed in the ``channels_last`` layout, in which pooling is several times as fast on a CPU. PyTorch's
own batch norm adds up thousands of values one by one in that layout, with a hundred times the rounding error that it
has in the other; sums here are those of :func:`torch.sum`, which adds in pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from frostline.errors import MetaError
from frostline.meta.normalizing import LayerStatistics

# Values in a piece of the input that is squared at a time: small enough for a processor's cache.
_PIECE = 1 << 18


class Pool(NamedTuple):
    """The settings of a max pooling over two dimensions, as PyTorch's operator takes them."""

    kernel_size: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    ceil_mode: bool


def can_pool_first(weight: Tensor) -> bool:
    """Whether normalizing with this weight grows with its input in every channel, so that pooling may come first."""
    return bool((weight > 0).all())


def normalized_and_pooled(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: Pool, *, consume: bool = False
) -> tuple[Tensor, LayerStatistics]:
    """``max_pool2d(relu(batch_norm(x)))`` with the statistics of the batch, and those without a graph.

    The same as PyTorch's three operators, with its first and second derivatives, to rounding; a third one raises. Where
    rounding makes two values of a window equal that were not, the gradient goes to the one that was larger.

    Args:
        x: shape (N, C, H, W), float32 or float64; the result is in the layout ``channels_last``, whatever this is in.
        weight: shape (C,), larger than zero; see :func:`can_pool_first`.
        bias: shape (C,).
        eps: added to the variance.
        pool: the pooling.
        consume: write the gradient where ``x`` is, which nothing else may use; it is differentiated once then, and
            raises at a second time.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[0.0, 0.0], [0.0, 0.0]]]])
        >>> pool = Pool([2, 2], [2, 2], [0, 0], [1, 1], False)
        >>> normalized_and_pooled(x, torch.ones(1), torch.zeros(1), 1.8125, pool)[0].flatten().tolist()
        [1.375, 0.0]
    """
    form = _ConsumingNorm if consume else _PooledNorm
    z, mean, var = form.apply(_dense(x), weight, bias, eps, pool)
    return z, LayerStatistics(mean, var, x.numel() // x.shape[1])


class _PooledNorm(torch.autograd.Function):
    """The forward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: Pool
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = _moments(x)
        rate = (var + eps).rsqrt()
        picked, places = torch.ops.aten.max_pool2d_with_indices(x, *pool)
        standard = _rows(picked).sub_(mean).mul_(rate)
        z = _image((standard * weight).add_(bias).relu_(), places)
        ctx.save_for_backward(x, weight, mean, rate, standard, z, places)
        ctx.mark_non_differentiable(mean, var)
        return z, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_PooledNormGradient.apply(grads[0], *ctx.saved_tensors), None, None)


class _PooledNormGradient(torch.autograd.Function):
    """The gradient, and the gradient of the gradient.

    In its terms, sums being over the rows of a channel and M their count: S = standardized input, g = gradient behind
    the ReLU, spread to where it was picked, k = weight * rate. The first derivative is

        dx = k (g - sum(g) / M - S sum(g S) / M),  dweight = sum(g S),  dbias = sum(g).

    The second is that of u.dx + a.dweight + c.dbias, with the derivatives of S and the rate by the input put in.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dz: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        rate: Tensor,
        standard: Tensor,
        z: Tensor,
        places: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad = _rows(torch.ops.aten.threshold_backward(_dense(dz), z, 0))
        sum_g, sum_gs = grad.sum(0), (grad * standard).sum(0)
        k, slope, offset = _slope_and_offset(x, weight, mean, rate, sum_g, sum_gs)
        dx = torch.empty_like(x)
        torch.addcmul(offset, _rows(x), slope, out=_rows(dx))
        _spread(dx, grad * k, places)
        ctx.save_for_backward(grad, x, weight, mean, rate, standard, z, places, sum_g, sum_gs)
        return dx, sum_gs, sum_g

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # `once_differentiable` lets torch.autograd.grad go around its error, to a wrong result.
            raise MetaError("batch norm, ReLU and pooling in one have no third derivative")
        grad, x, weight, mean, rate, standard, z, places, sum_g, sum_gs = ctx.saved_tensors
        u_image, a, c = _dense(grads[0]), *grads[1:]
        u, k, count = _rows(u_image), weight * rate, x.numel() // x.shape[1]
        full = (_rows(x) - mean).mul_(rate)
        sum_u, sum_us = u.sum(0), (u * full).sum(0)
        # What dx is at the places that were picked, but for the factor k.
        at = _samples(u_image).gather(1, _samples(places)).flatten(0, 1)
        at = at.sub_(sum_u / count).sub_(standard * (sum_us / count))
        along = (at * grad).sum(0)
        ddz = _image(at.mul_(k).addcmul_(standard, a).add_(c), places)
        ddz = torch.ops.aten.threshold_backward(ddz, z, 0)
        # The derivative by S is p u + q g; standardizing takes its mean and its share along S away.
        p, q = -k * sum_gs / count, a - k * sum_us / count
        offset = -rate * (p * sum_u + q * sum_g) / count
        slope = -rate * (p * sum_us + q * sum_gs) / count - weight * along * rate.square() / count
        dx = _image(full.mul_(slope).add_(offset).addcmul_(u, rate * p), x)
        _spread(dx, grad * (rate * q), places)
        return ddz, dx, rate * along, None, None, None, None, None


class _ConsumingNorm(torch.autograd.Function):
    """The same for a single derivative, which is written where the input was.

    Everything goes piece by piece, in which nothing of full size is made, and pooling, being the cheapest part, is done
    again instead of kept.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, pool: Pool
    ) -> tuple[Tensor, Tensor, Tensor]:
        mean, var = _moments(x)
        rate = (var + eps).rsqrt()
        z: Tensor | None = None
        done = 0
        for piece in x.split(_samples_of_piece(x)):
            picked, _ = torch.ops.aten.max_pool2d_with_indices(piece, *pool)
            if z is None:
                shape = (x.shape[0], *picked.shape[1:])
                z = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
            _rows(picked).sub_(mean).mul_(rate).mul_(weight).add_(bias).relu_()
            z[done : done + len(piece)] = picked
            done += len(piece)
        assert z is not None
        ctx.pool = pool
        ctx.save_for_backward(x, weight, mean, rate, z)
        ctx.mark_non_differentiable(mean, var)
        return z, mean, var

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise MetaError("a pass that was to be differentiated once was differentiated with create_graph=True")
        x, weight, mean, rate, z = ctx.saved_tensors
        step = _samples_of_piece(x)
        pieces = list(zip(x.split(step), _dense(grads[0]).split(step), z.split(step), strict=True))
        sums: list[Tensor] = []
        places: list[Tensor] = []
        for part, dz, out in pieces:
            picked, at = torch.ops.aten.max_pool2d_with_indices(part, *ctx.pool)
            # Half the memory; the operators want the wide type again.
            places.append(at.int())
            grad = _rows(torch.ops.aten.threshold_backward(dz, out, 0))
            sums.append(torch.stack([grad.sum(0), _rows(picked).sub_(mean).mul_(rate).mul_(grad).sum(0)]))
        sum_g, sum_gs = torch.stack(sums).sum(0)
        k, slope, offset = _slope_and_offset(x, weight, mean, rate, sum_g, sum_gs)
        for (part, dz, out), at in zip(pieces, places, strict=True):
            grad = _rows(torch.ops.aten.threshold_backward(dz, out, 0))
            torch.addcmul(offset, _rows(part), slope, out=_rows(part))
            _spread(part, grad * k, at.long())
        return x, sum_gs, sum_g, None, None


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, the variance in a second pass over pieces of the batch."""
    count = x.numel() // x.shape[1]
    mean = _rows(x).sum(0) / count
    total = torch.zeros_like(mean)
    for piece in x.split(_samples_of_piece(x)):
        total += (_rows(piece) - mean).square_().sum(0)
    return mean, total / count


def _slope_and_offset(
    x: Tensor, weight: Tensor, mean: Tensor, rate: Tensor, sum_g: Tensor, sum_gs: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient as k g + slope x + offset."""
    count, k = x.numel() // x.shape[1], weight * rate
    slope = -k * rate * sum_gs / count
    return k, slope, -k * sum_g / count - slope * mean


def _samples_of_piece(x: Tensor) -> int:
    return max(1, _PIECE * x.shape[0] // x.numel())


def _dense(x: Tensor) -> Tensor:
    """The same values in the layout that all of this file is written for."""
    return x.contiguous(memory_format=torch.channels_last)


def _samples(x: Tensor) -> Tensor:
    """A view of shape (N, H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _rows(x: Tensor) -> Tensor:
    """A view of shape (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    """Rows as what they are rows of."""
    n, c, h, w = like.shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)


def _spread(x: Tensor, rows: Tensor, places: Tensor) -> None:
    """Add values to the places of ``x`` that they were picked from."""
    _samples(x).scatter_add_(1, _samples(places), rows.view(places.shape[0], -1, places.shape[1]))
