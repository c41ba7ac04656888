"""Files that are there whole or not at all, whatever kills the process or fills the disk.

Knows bytes and paths; pure Python, knows nothing of tensors or runs.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

from frostline.errors import CannotWrite, FrostlineError, StorageFull

FULL = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than allowed",
}
PARTIAL = ".partial"


def replace_file(path: Path, content: bytes | Iterable[bytes | memoryview], *, mode: int | None = None) -> None:
    """Write a file so that readers see what was there before or all of the new content, also after a power cut.

    The content goes to a temporary file in the same folder, is flushed to the disk, and takes the name in one step.
    On any failure the temporary file is removed and the old file is as it was.

    Args:
        path: the file; its folder exists.
        content: all of it, or its pieces in order, each of which is asked for when the one before it is written.
        mode: its permissions; at no time has anybody else any. By default those of a new file.

    Raises:
        OSError: it cannot be written.
    """
    pieces = (content,) if isinstance(content, bytes) else content
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with open(temporary, "xb", opener=_for_its_owner_alone if mode is not None else None) as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _for_its_owner_alone(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def append_file(path: Path, content: bytes) -> None:
    """Add to the end of a file; on a failure take back what was added.

    A kill can leave a part of it: :func:`drop_torn_line` removes that from a file of lines. A power cut can lose it,
    until :func:`sync_file`.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
        except BaseException:
            file.truncate(size)
            raise


def drop_torn_line(path: Path) -> None:
    """Cut off what stands behind the last line end of a file; a file that does not exist stays so."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk; a file that does not exist needs none."""
    if path.exists():
        with path.open("r+b") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "nt":  # Windows has no such call, and journals renames itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_partial(path: Path) -> bool:
    """Tell whether a file is the temporary file of a :func:`replace_file` that was killed."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)


@contextmanager
def told(path: Path, size: int, advice: str) -> Generator[None, None, None]:
    """A block that writes a file; errors of the system leave it as errors of ours.

    Args:
        path: what is being written.
        size: how many bytes it has.
        advice: lines with what is kept, and the fix, for a disk that is full.

    Raises:
        StorageFull: there is no space left.
        CannotWrite: it cannot be written for another reason.
    """
    try:
        yield
    except FrostlineError:
        raise
    except OSError as error:
        full = storage_full(error, path, size, advice)
        if full is not None:
            raise full from error
        raise CannotWrite(
            f"{path} cannot be written: {error.strerror or error}\n  fix: a folder that exists and can be written to"
        ) from error


def storage_full(error: OSError, path: Path, size: int, advice: str) -> StorageFull | None:
    """Translate an error of the system into ours, if it is about space.

    Args:
        error: what was raised.
        path: what was being written.
        size: how many bytes it has.
        advice: lines with what is kept, and the fix.

    Returns:
        The error to raise, or nothing if ``error`` is about something else.
    """
    reason = FULL.get(error.errno or 0)
    if reason is None:
        return None
    try:
        free = f"; {shutil.disk_usage(path.parent).free:,} are free"
    except OSError:
        free = ""
    translated = StorageFull(f"{path} could not be written ({size:,} bytes{free}): {reason}\n{advice}")
    translated.errno = error.errno
    return translated
