"""A run on several processes of which one has ended: one error, from one process, that says what is kept."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

import torch.distributed as dist

from frostline.errors import FrostlineError, ProcessLost
from frostline.norms.processes import store, world_size

# What gloo and NCCL say where the other side is gone; they have no kind of error for it.
_SIGNS = ("closed by peer", "Connection reset", "Broken pipe", "Connection refused", "Socket Timeout", "remote process")
_KEY = "frostline/failed"


@contextmanager
def lost_process_told(kept: Callable[[], str]) -> Generator[None, None, None]:
    """Where another process is gone, say which and why as far as it has said so, and what is kept.

    A process that fails leaves its error in the store that the processes met at, for those that only notice that it
    is gone. Without several processes nothing is done.

    Args:
        kept: says what a run leaves, in a line.

    Raises:
        ProcessLost: another process has ended, or the launcher has ended this one, as it does then.
    """
    if world_size() < 2:
        yield
        return
    try:
        yield
    except BaseException as error:
        lost = isinstance(error, ProcessLost) or (isinstance(error, RuntimeError) and _is_of_another(error))
        if not lost:
            _leave(error)
            raise
        told = _left()
        what = told or str(error).strip().splitlines()[0]
        look = "that" if told else "what ended it (its log, memory, a signal)"
        raise ProcessLost(
            f"another process of this run has ended, and the run with it\n  found: {what}\n  {kept()}\n"
            f"  fix: look at {look}, then go on with --resume",
            speaks=_is_first_to_notice(),
        ) from None


def _is_of_another(error: RuntimeError) -> bool:
    if isinstance(error, FrostlineError):
        return False
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in _SIGNS)


def _leave(error: BaseException) -> None:
    with suppress(Exception):
        text = str(error).strip().splitlines()
        store().set(f"{_KEY}/{dist.get_rank()}", f"{type(error).__name__}: {text[0] if text else ''}")


def _left() -> str:
    with suppress(Exception):
        left = store()
        for rank in range(world_size()):
            if left.check([f"{_KEY}/{rank}"]):
                return f"process {rank} failed: {left.get(f'{_KEY}/{rank}').decode()}"
    return ""


def _is_first_to_notice() -> bool:
    """Whether this process is the one that tells: the first of those that are left."""
    try:
        return int(store().add("frostline/noticed", 1)) == 1
    except Exception:  # the store went with the process that kept it
        return dist.get_rank() == 0


@contextmanager
def termination_told() -> Generator[None, None, None]:
    """Within a launcher, make its signal to end an error like others, so that it is told what is kept.

    Launchers send SIGTERM to the processes that are left when one has ended. For a command, which owns its process;
    outside of a launcher, and in other threads than the main one, nothing is done.

    Raises:
        ProcessLost: the signal came.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        # A second one, or one while the first is told, ends the process as it would have.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise ProcessLost("the launcher ended this process (SIGTERM), as it does when another one has ended")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
