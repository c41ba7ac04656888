"""Tensors of which this process holds a part only: FSDP2's and tensor parallelism's ``DTensor``.

But for `whole`, no collective operation is called, so that a process may look at its part when the others do not.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

# Where a part begins in the whole, and its shape.
Part: TypeAlias = "tuple[tuple[int, ...], tuple[int, ...]]"


def is_distributed(tensor: Tensor) -> bool:
    """Whether the tensor is spread over processes, or copied to each of them.

    By what it has, because its class moved between versions of torch, and is not there without ``torch.distributed``.

    Example:
        >>> is_distributed(torch.zeros(2))
        False
    """
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def part_of(tensor: Tensor) -> Part | None:
    """Which part of a tensor this process holds: offsets and sizes; nothing where it holds all.

    Example:
        >>> part_of(torch.zeros(2)) is None
        True
    """
    if not is_distributed(tensor):
        return None
    spread: Any = tensor
    # The protocol by which torch.distributed.checkpoint itself asks tensors for their parts.
    chunks = spread.__create_chunk_list__()
    whole = tuple(int(size) for size in tensor.shape)
    if not chunks:
        return (0,) * len(whole), (0,) * len(whole)
    found = tuple(map(int, chunks[0].offsets)), tuple(map(int, chunks[0].sizes))
    return None if found == ((0,) * len(whole), whole) else found


def own_part(tensor: Tensor) -> Tensor:
    """The values that this process holds, in the memory of the tensor itself.

    Example:
        >>> value = torch.zeros(2)
        >>> own_part(value) is value
        True
    """
    if not is_distributed(tensor):
        return tensor
    spread: Any = tensor
    with torch.no_grad():
        return spread.to_local()


def whole(tensor: Tensor) -> Tensor:
    """All values of a tensor; of one that is spread over processes each of them has to ask.

    Example:
        >>> value = torch.zeros(2)
        >>> whole(value) is value
        True
    """
    if not is_distributed(tensor):
        return tensor
    spread: Any = tensor
    with torch.no_grad():
        return spread.full_tensor()


def cut(tensor: Tensor, part: Part | None) -> Tensor:
    """A part of a whole tensor, as a view; all of it where the part is nothing.

    Example:
        >>> cut(torch.arange(4), ((1,), (2,)))
        tensor([1, 2])
    """
    if part is None:
        return tensor
    for dimension, (offset, size) in enumerate(zip(*part, strict=True)):
        tensor = tensor.narrow(dimension, min(offset, tensor.shape[dimension]), size)
    return tensor


def reshard(model: nn.Module) -> None:
    """Put the shards back in the place of the whole parameters that FSDP2 gathered for a pass.

    For what is about to write: FSDP2 throws the gathered ones away, and with them what was written. The outermost unit
    keeps them from the forward pass to the next backward pass. Nothing is exchanged. Other models stay as they are.
    """
    for module in model.modules():
        # Not by its class, which moved between versions of torch.
        if callable(getattr(module, "reshard", None)) and callable(getattr(module, "set_reshard_after_backward", None)):
            fully_sharded: Any = module
            fully_sharded.reshard()
