"""Whether a converted layer holds the state that it should, and gives what the old one gave, by value."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from frostline.norms.convert.dims import said_by_class
from frostline.norms.convert.families import AFFINE, own_tensors
from frostline.norms.convert.recipes import Recipe
from frostline.norms.untouched import untouched
from frostline.state.digest import digest


def difference(old: nn.Module, new: nn.Module, recipe: Recipe) -> str | None:
    """What is wrong with a layer that was converted, in words; ``None`` if it is as it should be.

    Where the conversion is exact both layers are run in eval mode, past their hooks, on values up to three deviations
    from the running mean: the bytes have to be equal. Neither layer is changed.
    """
    for name in AFFINE:
        if not recipe.affine_from_buffers and new._parameters.get(name) is not old._parameters.get(name):
            return f"{name} is another Parameter"
    if recipe.buffers == "keep" and any(
        new._buffers.get(n) is not b for n, b in old._buffers.items() if n not in AFFINE
    ):
        return "a buffer is another tensor"
    if new.training != old.training:
        return "the mode is another"
    if recipe.check == "none" or any(tensor.is_meta for tensor in own_tensors(old)):
        return None
    x = probe(old, said_by_class(old) or said_by_class(new))
    with untouched(old), untouched(new):
        # In place activations write into their input.
        before, after = (type(each).forward(each, x.clone()) for each in (old, new))
    if recipe.check == "equal":
        same = digest(before) == digest(after)
    else:
        same = bool(((before - after).double().abs() <= rounding(new, x)).all())
    return None if same else "its output in eval mode is another"


def probe(layer: nn.Module, dims: int | None) -> Tensor:
    """An input for a layer: values up to three running deviations from each channel's running mean.

    Args:
        layer: its channels, statistics, type and device are taken.
        dims: how many dimensions the input has besides batch and channels; ``None`` takes two.

    Example:
        >>> probe(nn.BatchNorm2d(3), 2).shape
        torch.Size([2, 3, 2, 2])
    """
    mean, var = layer._buffers.get("running_mean"), layer._buffers.get("running_var")
    weight = layer._parameters.get("weight", None)
    like = weight if weight is not None else mean
    width = int(layer.num_features) if like is None else like.shape[0]  # type: ignore[arg-type]
    shape = (2, width, *[2] * (dims or 2))
    x = torch.linspace(-3, 3, math.prod(shape), dtype=torch.float64).view(shape)
    if mean is not None and var is not None:
        channels = (1, width, *[1] * (len(shape) - 2))
        x = mean.double().cpu().view(channels) + x * var.double().cpu().clamp_min(0).sqrt().view(channels)
    return x.to(torch.get_default_dtype()) if like is None else x.to(like)


def rounding(layer: nn.Module, x: Tensor) -> Tensor:
    """How far two ways to compute a frozen batch norm may lie apart.

    With ``s = weight / sqrt(var + eps)`` one rounds ``x * s + (bias - mean * s)``, the other the same in another order.
    ``s`` takes four roundings, each product and sum one more: at most seven of half an eps on each of the three terms
    and on either side, where activations behind do not stretch.
    """
    channels = (1, -1, *[1] * (x.ndim - 2))
    mean, var, weight, bias = (
        getattr(layer, name).detach().double().view(channels) for name in ("running_mean", "running_var", *AFFINE)
    )
    scale = weight.abs() * (var + float(layer.eps)).rsqrt()  # type: ignore[arg-type]
    size = x.double().abs() * scale + mean.abs() * scale + bias.abs()
    # timm's activations have slopes of up to 1.13 (SiLU, GELU); 8 of eps leaves room for that.
    return 8 * torch.finfo(x.dtype).eps * size
