"""What is done to a tensor between a checkpoint and a model, as data: so that a plan can be written down and run again.

Knows tensors; knows nothing of names, files or models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from frostline.checkpoint.stored import dtype_name
from frostline.errors import CheckpointError


@dataclass(frozen=True)
class Operation:
    """One step.

    Attributes:
        name: which; a key of the table below.
        arguments: what it needs to know, as JSON-ready values.
    """

    name: str
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        said = {key: value for key, value in self.arguments.items() if not isinstance(value, (list, Mapping))}
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in said.items())})"

    def run(self, value: Tensor, current: Tensor | None = None) -> Tensor:
        """The new value; neither argument is changed.

        Args:
            value: what the checkpoint has.
            current: what the model has; only operations that keep a part of it need it.

        Raises:
            CheckpointError: the operation is not known, or needs the model's own values.
        """
        if self.name not in _TABLE:
            raise CheckpointError(f"the plan has an operation {self.name!r}, which this version does not know")
        return _TABLE[self.name](value, current, **self.arguments)

    @property
    def needs_current(self) -> bool:
        """Whether a part of what the model has now stays."""
        return self.name == "class-rows"

    def to_json(self) -> dict[str, Any]:
        """The operation as JSON-ready values."""
        return {"name": self.name, "arguments": dict(self.arguments)}


def _cast(value: Tensor, _: Tensor | None, *, to: str, lossy: bool) -> Tensor:
    dtype = getattr(torch, to, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"torch has no type {to!r}")
    cast = value.to(dtype)
    if not lossy and not _same_values(cast.to(value.dtype), value):
        raise CheckpointError(f"{dtype_name(value.dtype)} in the checkpoint loses values as {to}")
    return cast


def _same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values, NaN for NaN, and a zero of the same sign."""
    if one.dtype == torch.bool or not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    elif one.dtype.itemsize == 1:
        one, other = one.float(), other.float()  # torch compares no types of 8 bits
    both_nan = one.isnan() & other.isnan()
    # The sign of a NaN means nothing, and bfloat16 does not keep it.
    alike = both_nan | ((one == other) & (torch.signbit(one) == torch.signbit(other)))
    return bool(alike.all())


def _input_channels(value: Tensor, _: Tensor | None, *, to: int) -> Tensor:
    channels = value.shape[1]
    wide = value.double()
    if to == 1:
        return wide.sum(1, keepdim=True).to(value.dtype)
    repeated = wide.repeat(1, math.ceil(to / channels), *([1] * (value.ndim - 2)))[:, :to]
    return (repeated * (channels / to)).to(value.dtype)


def _position_embedding(value: Tensor, _: Tensor | None, *, prefix: int, grid: list[int], to: list[int]) -> Tensor:
    tokens = value.reshape(-1, value.shape[-1])
    kept, patches = tokens[:prefix], tokens[prefix:]
    image = patches.double().reshape(1, *grid, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(image, size=to, mode="bicubic", antialias=True, align_corners=False)
    patches = resized.permute(0, 2, 3, 1).reshape(-1, value.shape[-1]).to(value.dtype)
    return torch.cat([kept, patches]).reshape(*value.shape[:-2], -1, value.shape[-1])


def _reshape(value: Tensor, _: Tensor | None, *, to: list[int]) -> Tensor:
    return value.reshape(to)


def _class_rows(value: Tensor, current: Tensor | None, *, rows: list[list[int]], of: int) -> Tensor:
    if current is None:
        raise CheckpointError(
            "rows of classes that the checkpoint does not know keep what the model has, and there is no model here\n"
            "  fix: plan.apply() on the model, and save that"
        )
    if len(current) != of:
        raise CheckpointError(f"{len(current)} rows in the model, {of} when it was planned for\n  fix: plan again")
    # In the wider of both types: rounding is for a cast to do, and to refuse.
    result = current.detach().to("cpu", _wider(value.dtype, current.dtype), copy=True)
    to, from_ = (torch.tensor(side) for side in zip(*rows, strict=True))
    result[to] = value[from_].to(result.dtype)
    return result


def _wider(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The type that holds the values of both; torch itself has none for floats of 8 bits."""
    if one == other:
        return one
    small = [torch.float32 if each.is_floating_point and each.itemsize == 1 else each for each in (one, other)]
    return torch.promote_types(*small)


_TABLE: Mapping[str, Callable[..., Tensor]] = {
    "cast": _cast,
    "input-channels": _input_channels,
    "position-embedding": _position_embedding,
    "conv-linear": _reshape,
    "scalar": _reshape,
    "class-rows": _class_rows,
}
