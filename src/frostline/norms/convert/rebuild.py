"""A layer of another class with the same state."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn

from frostline.norms.convert.families import AFFINE
from frostline.norms.convert.frozen import COUNT
from frostline.norms.convert.recipes import STATISTICS, Recipe

_TABLES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def rebuilt(old: nn.Module, recipe: Recipe) -> nn.Module:
    """Make the new layer of a recipe; the old one is not changed.

    Parameters and buffers are the same objects, in the same order; modes, attributes and child modules are taken over;
    hooks stand in the same tables, so that their handles go on working.

    Example:
        >>> old = nn.BatchNorm1d(2)
        >>> new = rebuilt(old, Recipe(nn.SyncBatchNorm, True, "", "equal", {"process_group": None}))
        >>> type(new).__name__, new.weight is old.weight, new.running_var is old.running_var
        ('SyncBatchNorm', True, True)
    """
    new = recipe.cls.__new__(recipe.cls)
    attributes = {name: value for name, value in vars(old).items() if name not in recipe.without}
    attributes.update({table: copy.copy(attributes[table]) for table in _TABLES})
    attributes.update(recipe.attributes)
    new.__dict__.update(attributes)
    if recipe.affine_from_buffers:
        _make_parameters(new)
    for name in STATISTICS:
        if recipe.buffers == "none":
            new._buffers.pop(name, None)
        elif recipe.buffers == "clear" and name in new._buffers:
            new._buffers[name] = None
    return new


def _make_parameters(layer: nn.Module) -> None:
    """Weight and bias, kept as buffers, become parameters on the same memory; a count is added."""
    for name in AFFINE:
        layer._parameters[name] = nn.Parameter(cast("torch.Tensor", layer._buffers.pop(name)), requires_grad=False)
    mean = layer._buffers["running_mean"]
    if COUNT not in layer._buffers and mean is not None:
        layer._buffers[COUNT] = torch.zeros((), dtype=torch.long, device=mean.device)
