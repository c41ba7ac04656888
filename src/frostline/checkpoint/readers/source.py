"""A file that is read in parts, at different times, and must stay what it was when it was opened.

Knows files and bytes; knows nothing of formats. Plain reads, no memory map: mapped pages count as memory of the
process, and a file that is truncated while it is mapped ends the process with a signal.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frostline.checkpoint.readers.refusals import AGAIN, LOCAL, shown, unreadable
from frostline.checkpoint.stored import as_bytes
from frostline.errors import CheckpointError, CorruptCheckpoint

# Checksums of data that is not kept are taken over pieces of this many bytes.
_PIECE = 2**20
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


class SourceFile:
    """A regular file, and what it was like when it was first seen.

    Attributes:
        path: where it is.
        size: how many bytes it had.
    """

    def __init__(self, path: Path) -> None:
        """Look at the file without reading it.

        Raises:
            CheckpointError: it does not exist, is no regular file, or may not be read.
        """
        self.path = path
        seen = look_at(path)
        if not stat.S_ISREG(seen.st_mode):
            raise irregular(path, seen)
        self._stamp = _stamp(seen)
        self.size = seen.st_size

    @contextmanager
    def open(self) -> Generator[io.RawIOBase, None, None]:
        """Open the file for some reads, after which it must still be the file that was first seen.

        Raises:
            CorruptCheckpoint: it is another file by now, or has been written to.
            CheckpointError: it may not be read.
        """
        try:
            # A pipe that took the file's place since would otherwise block, for as long as nobody writes into it.
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise self.changed("it is gone") from error
        except OSError as error:
            raise unreadable(self.path, error) from error
        with io.FileIO(handle, "rb") as file:
            self._compare(handle)
            yield file
            self._compare(handle)

    def read(self, file: io.RawIOBase, position: int, length: int) -> bytes:
        """Some bytes; fewer only where the file ends.

        Raises:
            CheckpointError: the system cannot read them.
        """
        length = max(0, min(length, self.size - position))  # memory is set aside for all that is asked for
        try:
            file.seek(position)
            content = file.read(length) or b""
            while len(content) < length:  # a single call gives at most 2 GiB
                more = file.read(length - len(content))
                if not more:
                    break
                content += more
        except OSError as error:
            raise unreadable(self.path, error) from error
        return content

    def fill(self, file: io.RawIOBase, position: int, flat: Tensor) -> None:
        """Read as many bytes as a flat ``uint8`` tensor has into it.

        Raises:
            CorruptCheckpoint: the file ends before.
            CheckpointError: the system cannot read them.
        """
        rest = _view(flat)
        try:
            file.seek(position)
            while rest:
                taken = file.readinto(rest)
                if not taken:
                    raise self.changed("it has become shorter")
                rest = rest[taken:]
        except OSError as error:
            raise unreadable(self.path, error) from error

    def changed(self, how: str) -> CorruptCheckpoint:
        """The error for a file that is no longer what it was."""
        return CorruptCheckpoint(
            f"the checkpoint {shown(self.path)} has changed since it was opened: {how}\n"
            "  fix: open it again, when nothing writes to it any more"
        )

    def _compare(self, handle: int) -> None:
        now = os.fstat(handle)
        if _stamp(now) != self._stamp:
            how = "its size is another" if now.st_size != self.size else "it was written to or replaced"
            raise self.changed(how)


class Extent:
    """A run of bytes in a file, which may have a checksum that is compared once, the first time any of it is read.

    Attributes:
        source: the file.
        name: what the run is, for messages.
        length: how many bytes it has.
    """

    def __init__(self, source: SourceFile, name: str, start: int, length: int, crc: int = 0) -> None:
        self.source = source
        self.name = name
        self.length = length
        self._start = start
        # Zero stands for a sum that was not taken.
        self._crc = crc
        self._unchecked = crc != 0

    def begin(self, file: io.RawIOBase) -> int:  # noqa: ARG002 - for runs whose beginning stands in the file
        """Where the run begins in the file."""
        return self._start

    def take(self, offset: int, length: int) -> bytes:
        """Some bytes of it, for parts that are short.

        Raises:
            CorruptCheckpoint: it is damaged, or the file has changed.
        """
        flat = fresh((length,), torch.uint8, self.source.path)
        self.fill(offset, flat)
        return flat.numpy().tobytes()

    def fill(self, offset: int, flat: Tensor) -> None:
        """Read bytes of it into a flat ``uint8`` tensor.

        Raises:
            CorruptCheckpoint: it is damaged, or the file has changed.
        """
        with self.source.open() as file:
            begin = self.begin(file)
            if self._unchecked and (offset or flat.numel() != self.length):
                self._check(file, begin)
            self.source.fill(file, begin + offset, flat)
        if self._unchecked:  # all of it is here
            self.compare(zlib.crc32(_view(flat)))

    def pieces(self, offset: int, length: int, most: int) -> Generator[Tensor, None, None]:
        """Bytes of it, ``most`` at a time in one buffer; the last of them only if the checksum is right.

        Raises:
            CorruptCheckpoint: it is damaged, or the file has changed.
        """
        buffer = fresh((min(most, length),), torch.uint8, self.source.path)
        with self.source.open() as file:
            begin = self.begin(file)
            if self._unchecked and length != self.length:
                self._check(file, begin)
            crc = 0
            for start in range(0, length, most):
                piece = buffer[: min(most, length - start)]
                self.source.fill(file, begin + offset + start, piece)
                if self._unchecked:
                    crc = zlib.crc32(_view(piece), crc)
                    if start + most >= length:
                        self.compare(crc)
                yield piece

    def check(self) -> None:
        """Compare the checksum, if it has not been yet.

        Raises:
            CorruptCheckpoint: it is damaged, or the file has changed.
        """
        if self._unchecked:
            with self.source.open() as file:
                self._check(file, self.begin(file))

    def compare(self, crc: int) -> None:
        """Note that the checksum is right, or say that it is not.

        Raises:
            CorruptCheckpoint: it is not.
        """
        if crc != self._crc:
            raise CorruptCheckpoint(
                f"the checkpoint {shown(self.source.path)} is damaged: a record does not match its checksum\n"
                f"  found: {shown(self.name)}\n  {AGAIN}"
            )
        self._unchecked = False

    def _check(self, file: io.RawIOBase, begin: int) -> None:
        buffer = torch.empty(min(_PIECE, self.length), dtype=torch.uint8)
        crc = 0
        for start in range(0, self.length, _PIECE):
            piece = buffer[: min(_PIECE, self.length - start)]
            self.source.fill(file, begin + start, piece)
            crc = zlib.crc32(_view(piece), crc)
        self.compare(crc)


def look_at(path: Path) -> os.stat_result:
    """What the system says of a path, behind symbolic links.

    Raises:
        CheckpointError: it does not exist, or cannot be looked at.
    """
    try:
        return path.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"the checkpoint {shown(path)} {absence(path)}\n  {LOCAL}") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CheckpointError(
                f"the checkpoint {shown(path)} is a symbolic link that leads back to itself\n  {LOCAL}"
            ) from error
        raise unreadable(path, error) from error
    except ValueError as error:  # a null byte in the name
        raise CheckpointError(f"the checkpoint {shown(path)} does not exist: {error}\n  {LOCAL}") from error


def absence(path: Path) -> str:
    """How a path that cannot be found is not there."""
    try:
        return f"is a symbolic link to {shown(os.readlink(path))}, which does not exist"
    except (OSError, ValueError):
        return "does not exist"


def irregular(path: Path, seen: os.stat_result) -> CheckpointError:
    """The error for something that is no file; it was not opened, because that alone could block or do harm."""
    what = next((name for test, name in _KINDS if test(seen.st_mode)), "a folder")
    return CheckpointError(f"the checkpoint {shown(path)} is {what}, not a file\n  {LOCAL}")


def fresh(shape: tuple[int, ...], dtype: torch.dtype, path: Path) -> Tensor:
    """Memory for a tensor.

    Raises:
        CheckpointError: there is not enough.
    """
    try:
        return torch.empty(shape, dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        raise CheckpointError(
            f"{shown(path)}: there is no memory for a tensor of shape {shape} and {dtype}\n"
            "  fix: a machine with more memory, or fewer tensors at a time"
        ) from error


def fresh_bytes(shape: tuple[int, ...], dtype: torch.dtype, path: Path) -> tuple[Tensor, Tensor]:
    """Memory for a tensor, and the same memory as flat bytes.

    Raises:
        CheckpointError: there is not enough.
    """
    values = fresh(shape, dtype, path)
    return values, as_bytes(values)


def _view(flat: Tensor) -> memoryview:
    array: Any = flat.numpy()
    return memoryview(array)


def _stamp(seen: os.stat_result) -> tuple[int, int, int, int]:
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns
