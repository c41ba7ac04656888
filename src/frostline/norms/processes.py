"""What several processes agree on: values that each of them gets, and errors that stop all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

from frostline.errors import NormsError, printable

T = TypeVar("T")


def world_size(process_group: Any = None) -> int:
    """How many processes a group has; 1 without an initialized ``torch.distributed``.

    Example:
        >>> world_size()
        1
    """
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(process_group)


def store() -> Any:
    """The key-value store that the processes met at: what one writes, others read without a collective operation."""
    return dist.distributed_c10d._get_default_store()


def gathered(value: T, process_group: Any = None) -> list[T]:
    """The value of every process of a group, in the order of their ranks; each process has to call this.

    Without an initialized ``torch.distributed`` it is the value alone.

    Example:
        >>> gathered(3)
        [3]
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    found: list[Any] = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(found, value, group=process_group)
    return cast("list[T]", found)


def _left_alone(rank: int, failure: str) -> Exception:
    return NormsError(f"process {rank} failed, so nothing was done in this one either\n  there: {failure}")


def in_all(
    work: Callable[[], T],
    process_group: Any = None,
    *,
    failed: Callable[[int, str], Exception] = _left_alone,
) -> list[T]:
    """Do local work in every process and gather what came of it; if it raises in one, every process raises.

    Without that, the others would wait for the one that failed.

    Args:
        work: calls no collective operation itself.
        process_group: the processes; by default all.
        failed: makes the error of a process from the rank of another one and a line about what happened there.

    Raises:
        NormsError: another process failed, and this one did not; or what ``failed`` makes.

    Example:
        >>> in_all(lambda: 1 + 1)
        [2]
    """
    error: Exception | None = None
    value: T | None = None
    try:
        value = work()
    except Exception as raised:
        error = raised
    told = gathered((value, None if error is None else f"{type(error).__name__}: {error}"), process_group)
    if error is not None:
        raise error
    for rank, (_, failure) in enumerate(told):
        if failure is not None:
            raise failed(rank, printable(failure.splitlines()[0]))
    return [cast("T", theirs) for theirs, _ in told]
