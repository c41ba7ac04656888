"""Work that several processes do together: it is done in all of them, or in none.

Knows groups of processes, and which of them share a tensor; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import Tensor

from frostline.errors import CheckpointError, printable
from frostline.norms.processes import gathered
from frostline.state.shards import is_distributed

T = TypeVar("T")


def groups_of(tensors: Iterable[Tensor]) -> list[Any]:
    """The groups of processes that tensors are spread over, each once: one for each dimension of their meshes.

    Example:
        >>> import torch
        >>> groups_of([torch.zeros(2)])
        []
    """
    meshes: list[Any] = []
    for tensor in tensors:
        if is_distributed(tensor):
            mesh = cast("Any", tensor).device_mesh
            if mesh not in meshes:
                meshes.append(mesh)
    return [mesh.get_group(dimension) for mesh in meshes for dimension in range(mesh.ndim)]


def in_every_process(groups: Sequence[Any], work: Callable[[], T]) -> list[T]:
    """Do local work in every process of some groups, and gather what came of it; one that fails stops all.

    Without that, the others would go on with what the one that failed does not have, or wait for it.

    Args:
        groups: of processes, each of which calls this; ``None`` stands for all of them. Without a group the work is
            done here alone.
        work: calls no collective operation itself.

    Returns:
        The values of the processes, in the order of their ranks.

    Raises:
        CheckpointError: another process failed, and this one did not.

    Example:
        >>> in_every_process([], lambda: 1 + 1)
        [2]
    """
    error: Exception | None = None
    value: Any = None
    try:
        value = work()
    except Exception as raised:
        error = raised
    rank = dist.get_rank() if groups else 0
    told: dict[int, tuple[Any, str]] = {rank: (value, "" if error is None else f"{type(error).__name__}: {error}")}
    for group in groups:
        # Along one dimension of a mesh after another, everybody hears of everybody.
        told = {rank: each for theirs in gathered(told, group) for rank, each in theirs.items()}
    if error is not None:
        raise error
    for theirs, (_, failure) in sorted(told.items()):
        if failure:
            first = printable(failure.splitlines()[0])
            raise CheckpointError(
                f"process {theirs} failed, so nothing was changed in this one either\n  there: {first}"
            )
    return [cast("T", told[theirs][0]) for theirs in sorted(told)]
