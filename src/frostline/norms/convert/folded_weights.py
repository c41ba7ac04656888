"""The weights that do the work of a layer and the batch norm behind it, and the proof that they do."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.norms.convert.dims import dims_of_convolution
from frostline.norms.convert.families import AFFINE

_SEED = 0


def folded(before: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of both layers in one, computed in float64 and rounded once.

    ``W' = W s`` and ``b' = (b - mean) s + beta`` with ``s = gamma / sqrt(var + eps)``, along the output channels.

    Args:
        before: a convolution or linear layer.
        norm: the batch norm behind it.

    Returns:
        Weight and bias in the type and on the device of the weight.

    Example:
        >>> norm = nn.BatchNorm1d(1, eps=0.0).eval()
        >>> _ = norm.running_var.fill_(4.0), norm.running_mean.fill_(1.0)
        >>> linear = nn.Linear(1, 1)
        >>> _ = linear.weight.data.fill_(6.0), linear.bias.data.fill_(3.0)
        >>> [tensor.item() for tensor in folded(linear, norm)]
        [3.0, 1.0]
    """
    scale, shift = _scale_and_shift(norm)
    weight, bias = before._parameters["weight"], before._parameters["bias"]
    assert weight is not None
    wide = _wide(weight)
    if getattr(before, "transposed", False):
        # (in, out / groups, ...): the channels of a group lie side by side, those of the groups below each other.
        groups = int(cast("Any", before).groups)
        by_group = wide.view(groups, wide.shape[0] // groups, wide.shape[1], -1)
        new_weight = (by_group * scale.view(groups, 1, -1, 1)).view_as(wide)
    else:
        new_weight = wide * scale.view(-1, *[1] * (wide.ndim - 1))
    new_bias = shift if bias is None else _wide(bias) * scale + shift
    return new_weight.to(weight.device, weight.dtype), new_bias.to(weight.device, weight.dtype)


def excess(before: nn.Module, norm: nn.Module, weight: Tensor, bias: Tensor | None) -> float:
    """By how much folded weights miss what both layers gave, as a multiple of what rounding explains; 1 is the limit.

    Both are run in float64, on one position of random input. All that may differ then is the rounding of the new
    weights to their type: half an eps of each, or half the smallest number there is. To that comes float64's own, for
    a sum of as many products.

    Args:
        before: the layer, with its folded weights.
        norm: the batch norm that was behind it.
        weight: the layer's weight before.
        bias: likewise, if it had one.
    """
    generator = torch.Generator().manual_seed(_SEED)
    now, now_bias = _wide(cast("Tensor", before.weight)), _wide(cast("Tensor", before.bias))
    x = torch.randn(_input_shape(before), dtype=torch.float64, generator=generator)
    old = _run(before, x, _wide(weight))
    channels = (1, -1, *[1] * (old.ndim - 2))
    scale, shift = (each.view(channels) for each in _scale_and_shift(norm))
    old_bias = torch.zeros_like(scale) if bias is None else _wide(bias).view(channels)
    expected = (old + old_bias) * scale + shift
    given = _run(before, x, now) + now_bias.view(channels)
    size = _run(before, x.abs(), now.abs()) + now_bias.abs().view(channels)
    reach = _run(before, x.abs(), torch.ones_like(now)) + 1
    info = torch.finfo(before.weight.dtype)  # type: ignore[arg-type]
    rounding = info.eps / 2 * size + info.tiny * info.eps / 2 * reach
    parts = size + (old_bias * scale).abs() + shift.abs()
    rounding = rounding + 4 * (now.numel() + 8) * torch.finfo(torch.float64).eps * parts
    return float(((expected - given).abs() / rounding).nan_to_num(nan=torch.inf).max())


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    mean, var = (_wide(cast("Tensor", norm._buffers[name])) for name in ("running_mean", "running_var"))
    weight, bias = (norm._parameters.get(name, norm._buffers.get(name)) for name in AFFINE)
    scale = (var + float(cast("Any", norm).eps)).rsqrt() * (1.0 if weight is None else _wide(weight))
    return scale, (0.0 if bias is None else _wide(bias)) - mean * scale


def _wide(tensor: Tensor) -> Tensor:
    # On the CPU, because not every device knows float64.
    return tensor.detach().cpu().double()


def _input_shape(layer: nn.Module) -> tuple[int, ...]:
    """Two samples of the one position that a kernel reads, or that a transposed one spreads."""
    own: Any = layer
    if isinstance(layer, nn.Linear):
        return (2, own.in_features)
    return (2, own.in_channels, *([1] * len(own.kernel_size) if own.transposed else own.kernel_size))


def _run(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """What the weight makes of an input; strides, dilation and padding only choose where it is applied."""
    own: Any = layer
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    transpose = "_transpose" if own.transposed else ""
    convolve = getattr(functional, f"conv{transpose}{dims_of_convolution(layer)}d")
    return convolve(x, weight, groups=own.groups)
