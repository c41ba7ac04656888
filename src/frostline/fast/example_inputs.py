"""Inputs to run a model on, where it says itself what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from frostline.errors import FastError

_SAMPLES = 2


def example_inputs(model: nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Two samples for a model that tells what it takes.

    By ``example_input_array`` (Lightning), ``dummy_inputs`` (transformers) or its configuration (timm).

    Raises:
        FastError: it does not tell.

    Example:
        >>> model = nn.Flatten()
        >>> model.default_cfg = {"input_size": (3, 8, 8)}
        >>> example_inputs(model)[0][0].shape
        torch.Size([2, 3, 8, 8])
    """
    given: Any = getattr(model, "example_input_array", None)
    if isinstance(given, Tensor):
        return (_two(given),), {}
    if isinstance(given, Mapping):
        named = cast("Mapping[str, Any]", given)
        return (), {name: _two(value) for name, value in named.items()}
    if isinstance(given, (tuple, list)):
        return tuple(map(_two, cast("tuple[Any, ...]", given))), {}
    dummy: Any = getattr(model, "dummy_inputs", None)
    if isinstance(dummy, Mapping):
        return (), {name: _two(value) for name, value in cast("Mapping[str, Any]", dummy).items()}
    told: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size: Any = told.get("input_size") if isinstance(told, Mapping) else getattr(told, "input_size", None)
    if size is not None:
        parameter = next(model.parameters(), None)
        numbers = torch.randn(_SAMPLES, *size, generator=torch.Generator().manual_seed(0))
        return (numbers if parameter is None else numbers.to(parameter.device, parameter.dtype),), {}
    raise FastError(
        f"plan: {type(model).__name__} does not say what inputs it takes\n"
        "  fix: plan(model, x) with a batch of two samples or more; a tuple for several arguments, a mapping for names"
    )


def _two(value: Any) -> Any:
    """A tensor with two samples at least: the second of one sample is made of it backwards."""
    if not isinstance(value, Tensor) or not value.ndim or len(value) >= _SAMPLES:
        return value
    return torch.cat([value, value.flip(-1) if value.ndim > 1 else value])
