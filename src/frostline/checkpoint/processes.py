"""Work that the processes which share sharded tensors do together: it is done in all of them, or in none.

Knows the processes that a tensor is spread over, and nothing of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from torch import Tensor

from frostline.errors import CheckpointError, printable
from frostline.norms.processes import gathered
from frostline.state.shards import is_distributed

T = TypeVar("T")


def meshes_of(tensors: Iterable[Tensor]) -> list[Any]:
    """The meshes of processes that tensors are spread over, each once, in the order of the tensors.

    Example:
        >>> meshes_of([torch.zeros(2)])
        []
    """
    found: list[Any] = []
    for tensor in tensors:
        if is_distributed(tensor):
            mesh = cast("Any", tensor).device_mesh
            if mesh not in found:
                found.append(mesh)
    return found


def in_every_process(meshes: Iterable[Any], work: Callable[[], T]) -> list[T]:
    """Do local work in every process of some meshes, and gather what came of it; one that fails stops all.

    Without that, the others would go on with what the one that failed does not have, or wait for it.

    Args:
        meshes: of processes, each of which calls this; without one the work is done here alone.
        work: calls no collective operation itself.

    Returns:
        The value of this process first, and then those of the others that are not equal to it.

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
    failed = () if error is None else (f"{type(error).__name__}: {error}",)
    told: list[tuple[Any, tuple[str, ...]]] = [(value, failed)]
    for group in [mesh.get_group(number) for mesh in meshes for number in range(mesh.ndim)]:
        # Along one dimension after another everybody hears of everybody.
        told = list(dict.fromkeys(each for theirs in gathered(told, group) for each in theirs))
    if error is not None:
        raise error
    failures = [failure for _, failures in told for failure in failures]
    if failures:
        raise CheckpointError(
            f"another process failed, so nothing was changed in this one either\n  there: {_first(failures)}"
        )
    return [cast("T", value), *(cast("T", theirs) for theirs, _ in told if theirs != value)]


def _first(failures: list[str]) -> str:
    return printable(failures[0].splitlines()[0])
