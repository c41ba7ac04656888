"""One writer to a folder at a time, held by the operating system: a killed process leaves nothing locked.

Knows files and processes; knows nothing of what is written.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from frostline.durable import told
from frostline.errors import CacheBusy, printable

LOCK = ".lock"


class WriterLock:
    """The right to write to a folder.

    Attributes:
        path: the locked file. It stays behind; what counts is the lock on it, not that it exists.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle: int | None = handle

    def __getstate__(self) -> dict[str, object]:
        # Another process that was not forked has no such handle; the number is that of another file there.
        return {"path": self.path, "_handle": None}

    def forget(self) -> None:
        """Close this process's end: in a child that was forked, so that the lock ends with the parent alone."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


@contextmanager
def writing(folder: Path) -> Generator[WriterLock, None, None]:
    """Hold the only right to write to a folder for a block. Readers need none.

    Args:
        folder: it exists.

    Raises:
        CacheBusy: another process, or another writer of this process, holds it.
        CannotWrite: the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, writing(Path(folder)) as lock:
        ...     lock.path.name
        '.lock'
    """
    path = folder / LOCK
    with told(path, 0, "  kept: everything"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    lock = WriterLock(path, handle)
    try:
        with told(path, 0, "  kept: everything"):  # some file systems of networks have no locks
            taken = _taken(handle)
        if not taken:
            raise CacheBusy(
                f"{folder} is being written to by {_owner(path)}\n"
                "  fix: wait until it is done (reading goes on meanwhile), or another folder"
            )
        # For the message of the next one alone.
        with suppress(OSError):
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield lock
    finally:
        lock.forget()


def _owner(path: Path) -> str:
    try:
        return printable(path.read_text(encoding="utf-8")) or "another process"
    except (OSError, ValueError):  # Windows lets nobody read what is locked
        return "another process"


if sys.platform == "win32":
    import msvcrt

    def _taken(handle: int) -> bool:
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _taken(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
