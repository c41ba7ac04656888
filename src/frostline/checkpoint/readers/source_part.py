"""A part of a file that is a file of its own: several were written into one, one after another.

Knows files and bytes; knows nothing of formats.
"""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from frostline.checkpoint.readers.source import SourceFile


class SourcePart(SourceFile):
    """A run of bytes of a file, read as if nothing were before or behind it.

    It shares what was seen of the whole file, so that a change of that is noticed here too.

    Attributes:
        path: where the whole file is.
        size: how many bytes the part has.
    """

    def __init__(self, whole: SourceFile, start: int, size: int) -> None:
        """Take a part that lies in the file, without reading it."""
        self.path = whole.path
        self.size = size
        self._whole = whole
        self._start = start

    @contextmanager
    def open(self) -> Generator[io.RawIOBase, None, None]:
        """Open the file for some reads of the part, after which the file must still be what it was.

        Raises:
            CorruptCheckpoint: it is another file by now, or has been written to.
            CheckpointError: it may not be read.
        """
        with self._whole.open() as file, _Window(file, self._start, self.size) as window:
            yield window


class _Window(io.RawIOBase):
    """Reads a part of an open file; closing it leaves the file open."""

    def __init__(self, file: io.RawIOBase, start: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if begin + offset < 0:
            raise ValueError("a position before the beginning")
        self._position = begin + offset
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        room = memoryview(buffer).cast("B")[: max(0, self._size - self._position)]
        if not room:
            return 0
        self._file.seek(self._start + self._position)
        taken = self._file.readinto(room) or 0
        self._position += taken
        return taken
