"""Layers like a given one with another number of outputs, and the values that they start from.

Knows single layers; knows nothing of models, optimizers or classes.
"""

from __future__ import annotations

import copy
import math
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor, nn

Head: TypeAlias = "nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d"
Conv: TypeAlias = "nn.Conv1d | nn.Conv2d | nn.Conv3d"

KINDS: tuple[type[nn.Linear] | type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d], ...] = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
)


@overload
def new_head(old_head: nn.Linear, num_classes: int, generator: torch.Generator) -> nn.Linear: ...
@overload
def new_head(old_head: Conv, num_classes: int, generator: torch.Generator) -> Conv: ...
def new_head(old_head: Head, num_classes: int, generator: torch.Generator) -> Head:
    """Make a classifier for the same features.

    Width, bias, dtype, device, and of a convolution its geometry and memory format are the old classifier's; the values
    are those that torch's own layer starts from, drawn from ``generator`` alone. It is in train mode and trainable.

    Args:
        old_head: the classifier to imitate, an ``nn.Linear`` or ``nn.Conv1d/2d/3d``; it is left as it is.
        num_classes: outputs of the new one.
        generator: what the values are drawn from, on its own device and in float32.

    Returns:
        A plain layer of torch, also where the old one is of a subclass.

    Example:
        >>> new_head(nn.Linear(5, 1000, bias=False), 2, torch.Generator().manual_seed(0))
        Linear(in_features=5, out_features=2, bias=False)

    Source:
        ``torch.nn.Linear.reset_parameters`` and ``torch.nn.modules.conv._ConvNd.reset_parameters``: uniform within one
        over the root of the features (times the kernel) that one output sees.
    """
    return layer_around(old_head, *starting_values(old_head, num_classes, generator))


def layer_around(like: Head, weight: Tensor, bias: Tensor | None) -> Any:
    """A plain layer of torch of the kind and geometry of ``like``, around these values. Nothing random is drawn."""
    rows, geometry = len(weight), {"bias": bias is not None, "device": "meta"}
    # On the meta device, where the layer's own initialization draws nothing from the global generator.
    if isinstance(like, nn.Linear):
        made: Any = nn.Linear(like.in_features, rows, **geometry)  # type: ignore[arg-type]
    else:
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        made = kind_of(like)(like.in_channels, rows, **geometry, **{name: getattr(like, name) for name in names})
    made.weight = nn.Parameter(weight)
    made.bias = None if bias is None else nn.Parameter(bias)
    return made


def kind_of(head: Head) -> Any:
    """The class of torch that a head is of: ``nn.Linear`` or a convolution.

    Example:
        >>> kind_of(nn.Conv2d(1, 1, 1))
        <class 'torch.nn.modules.conv.Conv2d'>
    """
    return next(kind for kind in KINDS if isinstance(head, kind))


def starting_values(layer: Head, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Weight and bias for so many outputs, as torch's own layer would start; drawn in float32, then cast.

    The layer is only read.

    Example:
        >>> weight, bias = starting_values(nn.Conv1d(3, 4, 5), 2, torch.Generator().manual_seed(0))
        >>> weight.shape, bias.shape
        (torch.Size([2, 3, 5]), torch.Size([2]))
    """
    like = layer.weight
    drawn = torch.empty(rows, *like.shape[1:], device=generator.device)
    if drawn.numel():  # torch warns of values for nothing
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
    weight = laid_out_like(like, drawn.to(device=like.device, dtype=like.dtype))
    bias: Tensor | None = getattr(layer, "bias", None)
    if bias is None:
        return weight, None
    bound = 1 / math.sqrt(max(math.prod(like.shape[1:]), 1))
    shift = torch.empty(rows, device=generator.device).uniform_(-bound, bound, generator=generator)
    return weight, shift.to(device=bias.device, dtype=bias.dtype)


def laid_out_like(like: Tensor, values: Tensor) -> Tensor:
    """The same values in the order of dimensions in which another tensor lies in memory (``channels_last``).

    Example:
        >>> like = torch.zeros(2, 3, 1, 1).to(memory_format=torch.channels_last)
        >>> laid_out_like(like, torch.zeros(5, 3, 1, 1)).stride() == like.stride()
        True
    """
    order, back = memory_order(like)
    return values.detach().permute(order).clone(memory_format=torch.contiguous_format).permute(back)


def memory_order(tensor: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions from the longest stride to the shortest, and the permutation that undoes that one."""
    strides, sizes = list(tensor.stride()), list(tensor.shape)
    # Of dimensions with one stride, those of length 1 come last: that is how 1x1 kernels are laid out.
    order = sorted(range(len(strides)), key=lambda dimension: (-strides[dimension], -sizes[dimension]))
    return order, [order.index(dimension) for dimension in range(len(strides))]


def carry_over(old: Head, made: Any, cls: type[nn.Module], *, but: tuple[str, ...] = ()) -> None:
    """Make a plain layer one of this class, with the mode of the old one and a copy of what its user has set on it.

    Example:
        >>> old, made = nn.Linear(2, 3).eval(), nn.Linear(2, 4)
        >>> old.rate = 0.1
        >>> carry_over(old, made, nn.Linear)
        >>> made.training, made.rate
        (False, 0.1)
    """
    made.__class__ = cls
    made.training = old.training
    for name, value in vars(old).items():
        if name not in vars(made) and name not in but:
            made.__dict__[name] = copy.deepcopy(value)
