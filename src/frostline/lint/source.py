"""A file of source text whose places can be named and edited, and which goes back to its bytes unchanged."""

from __future__ import annotations

import os
import stat
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from io import StringIO
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frostline.lint.diagnostic import Edit, Failure

if TYPE_CHECKING:
    from frostline.lint.notebook import Notebook

BOM = b"\xef\xbb\xbf"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
NOTEBOOK_SUFFIX = ".ipynb"
_LONG_LINE = 2_000
HEAD = 4096  # bytes; the first two lines, which may declare an encoding, are taken to lie in them
_OPEN = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class Source:
    r"""The text of one file, or the code cells of one notebook as one text. It is never changed: see :meth:`apply`.

    Lines are what Python takes for lines: they end with ``\n``, ``\r\n`` or ``\r``, and with nothing else.

    Attributes:
        path: the file, as it is printed.
        text: its characters without a byte order mark, line ends as they are. In a notebook the code cells, joined by
            one ``\n``, in which magics are replaced by something that parses and is as long.
        encoding: how it is written; ``utf-8`` where a byte order mark says so.
        bom: it begins with a byte order mark.
        notebook: the notebook that the text was taken from; ``None`` in plain files.

    Example:
        >>> source = Source("a.py", "π = 3\nr = π\n")
        >>> source.position(source.offset(2, 4)), source.line_text(2)
        ((2, 5), 'r = π')
        >>> source.apply([Edit(4, 5, "4")]).text
        'π = 4\nr = π\n'
    """

    __slots__ = ("_counted", "_data", "_newline", "_starts", "bom", "encoding", "notebook", "path", "text")

    def __init__(
        self,
        path: str,
        text: str,
        encoding: str = "utf-8",
        *,
        bom: bool = False,
        data: bytes | None = None,
        notebook: Notebook | None = None,
    ) -> None:
        self.path = path
        self.text = text
        self.encoding = encoding
        self.bom = bom
        self.notebook = notebook
        self._data = data
        self._starts: list[int] | None = None
        self._newline = ""
        # Of the last long line that was asked for: how many characters lie before each byte.
        self._counted: tuple[int, Sequence[int]] = (0, ())

    @property
    def is_notebook(self) -> bool:
        """Whether the text was taken from a notebook."""
        return self.notebook is not None

    @property
    def starts(self) -> list[int]:
        """The offset of the first character of each line; the last one is that behind the last line end."""
        if self._starts is None:
            # In this mode a StringIO ends lines where Python's tokenizer does, and leaves the ends as they are.
            ends = accumulate(map(len, StringIO(self.text, newline="")))
            self._starts = [0, *ends]
            if self.text and not self.text.endswith(("\n", "\r")):
                del self._starts[-1]
        return self._starts

    @property
    def line_count(self) -> int:
        """How many lines there are; an empty one behind the last line end does not count."""
        return len(self.starts) - (self.starts[-1] == len(self.text))

    @property
    def newline(self) -> str:
        """The line end that is used most, for lines that are inserted."""
        if not self._newline:
            windows = self.text.count("\r\n")
            counts = {
                "\n": self.text.count("\n") - windows,
                "\r\n": windows,
                "\r": self.text.count("\r") - windows,
            }
            self._newline = max(counts, key=lambda end: counts[end])
        return self._newline

    def offset(self, line: int, column: int) -> int:
        """The offset of a place as ``ast`` names it.

        Args:
            line: from 1; behind the last line is the end of the text.
            column: in bytes of UTF-8, from 0.
        """
        starts = self._starts or self.starts
        if line > len(starts):
            return len(self.text)
        start = starts[line - 1]
        if self._counted[0] == line:
            return start + self._characters(column)
        if not self.text.isascii():
            line_text = self.text[start : starts[line] if line < len(starts) else None]
            if not line_text.isascii():
                if len(line_text) > _LONG_LINE:
                    self._counted = (line, _character_counts(line_text))
                    return start + self._characters(column)
                return start + len(line_text.encode()[: max(column, 0)].decode(errors="ignore"))
        # In some f-strings Python 3.10 and 3.11 name places that do not exist.
        return min(max(start + column, 0), len(self.text))

    def _characters(self, column: int) -> int:
        """How many characters of the long line that was counted last lie before a byte."""
        counts = self._counted[1]
        return counts[min(max(column, 0), len(counts) - 1)]

    def start(self, node: Any) -> int:
        """The offset of the first character of a node of the syntax tree."""
        return self.offset(node.lineno, node.col_offset)

    def end(self, node: Any) -> int:
        """The offset behind the last character of a node of the syntax tree."""
        return self.offset(node.end_lineno, node.end_col_offset)

    def segment(self, node: Any) -> str:
        """The text of a node of the syntax tree."""
        return self.text[self.start(node) : self.end(node)]

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of an offset, both from 1; the column in characters."""
        line = bisect_right(self.starts, offset)
        return line, offset - self.starts[line - 1] + 1

    def line_text(self, line: int) -> str:
        """A line without its end; empty where there is no such line. Magics of notebooks are as they were written."""
        if not 1 <= line <= len(self.starts):
            return ""
        start, end = self.starts[line - 1], self._line_end(line)
        return self.text[start:end] if self.notebook is None else self.notebook.written[start:end]

    def indent_of(self, line: int) -> str:
        """The blanks that a line begins with."""
        text = self.line_text(line)
        return text[: len(text) - len(text.lstrip(" \t\f"))]

    def cell_of(self, line: int) -> tuple[int, int]:
        """The number of the cell that a line stands in, and its line there, both from 1; cell 0 in plain files."""
        return (0, line) if self.notebook is None else self.notebook.cell_of(line)

    def line_above(self, line: int, text: str) -> Edit:
        """An edit that inserts a line before another one; ``text`` comes with its indentation and without its end."""
        at = self.offset(line, 0)
        return Edit(at, at, text + self.newline)

    def line_below(self, line: int, text: str) -> Edit:
        """An edit that inserts a line behind another one, also where that is the last one of a cell."""
        at = self._line_end(line)
        return Edit(at, at, self.newline + text)

    def accepts(self, edit: Edit) -> bool:
        """Whether an edit can be made: it lies in the text, and in a notebook in one cell, clear of magics."""
        inside = 0 <= edit.start <= edit.end <= len(self.text)
        return inside and (self.notebook is None or self.notebook.accepts(edit))

    def apply(self, edits: Sequence[Edit]) -> Source:
        """A new source with the edits made, and nothing else changed.

        Insertions at one place are made in the order given, before a replacement that begins there.

        Raises:
            ValueError: two edits overlap, or one is not accepted.
        """
        ordered = sorted(edits, key=lambda edit: (edit.start, edit.end))
        for edit in ordered:
            if not self.accepts(edit):
                raise ValueError(f"{self.path}: the edit at {edit.start}:{edit.end} is outside of what can be edited")
        for one, other in pairwise(ordered):
            if other.start < one.end:
                raise ValueError(
                    f"{self.path}: the edits at {one.start}:{one.end} and {other.start}:{other.end} overlap"
                )
        if not ordered:
            return self
        if self.notebook is not None:
            changed = self.notebook.edited(ordered)
            return Source(self.path, changed.text, self.encoding, bom=self.bom, notebook=changed)
        return Source(self.path, edited(self.text, ordered), self.encoding, bom=self.bom)

    def to_bytes(self) -> bytes:
        """The content of the file: encoding, byte order mark and line ends as they were.

        Raises:
            UnicodeEncodeError: an edit brought in a character that the encoding lacks.
        """
        if self._data is not None:
            return self._data
        text = self.text if self.notebook is None else self.notebook.raw
        return (BOM if self.bom else b"") + text.encode(self.encoding)

    def _line_end(self, line: int) -> int:
        """The offset behind the last character of a line, in front of its end."""
        starts = self.starts
        if line >= len(starts):
            return len(self.text)
        end = starts[line] - 1
        return end - (self.text[end] == "\n" and self.text[end - 1 : end] == "\r")


def _character_counts(text: str) -> Sequence[int]:
    """How many whole characters lie before each byte, and before the end."""
    counts = array("L", [0])
    for count, char in enumerate(text):
        counts.extend([count] * (len(char.encode(errors="surrogatepass")) - 1))
        counts.append(count + 1)
    return counts


def edited(text: str, edits: Sequence[Edit]) -> str:
    """A text after edits that are in its order and do not overlap."""
    pieces: list[str] = []
    at = 0
    for edit in edits:
        pieces += text[at : edit.start], edit.text
        at = edit.end
    return "".join([*pieces, text[at:]])


def read_source(path: Path, name: str) -> Source | Failure:
    """Read a file.

    Args:
        path: the file.
        name: the path as it is printed.

    Returns:
        The source, or why there is none; never an error.
    """
    data = read_content(path, name)
    return data if isinstance(data, Failure) else source_from_bytes(data, name)


def read_content(path: Path, name: str) -> bytes | Failure:
    """All bytes of a file, or why they cannot be had; never an error.

    Args:
        path: the file.
        name: the path as it is printed.
    """
    try:
        # Without waiting: nobody may ever write to a pipe that happens to be called pipe.py.
        handle = os.open(path, _OPEN)
        mode = os.fstat(handle).st_mode
        if not stat.S_ISREG(mode):
            os.close(handle)
            return Failure(name, "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")
        with open(handle, "rb", buffering=0) as file:
            return file.readall()
    except OSError as error:
        return Failure(name, _reason(error))
    except ValueError as error:  # a path with a null character
        return Failure(name, str(error))


def source_from_bytes(data: bytes, name: str) -> Source | Failure:
    """Decode the content of a file, as Python does: UTF-8 unless a byte order mark or a comment says otherwise.

    Args:
        data: all of it.
        name: the path as it is printed; a name that ends with ``.ipynb`` is that of a notebook.

    Returns:
        The source, or why there is none; never an error.
    """
    bom = data.startswith(BOM)
    if data.startswith(UTF16):
        return Failure(name, "not UTF-8, but UTF-16", 1)
    if b"\0" in data:
        return Failure(name, "holds a null byte", _line_of(data, data.index(b"\0")))
    is_notebook = name.endswith(NOTEBOOK_SUFFIX)
    encoding = "utf-8"
    if not is_notebook:
        first, _, rest = data[:HEAD].replace(b"\r", b"\n").lstrip(b"\n").partition(b"\n")
        if b"coding" in first or b"coding" in rest.lstrip(b"\n").partition(b"\n")[0]:
            found = _declared(data)
            if not isinstance(found, tuple):
                return Failure(name, found, 1)
            encoding, line = found
            if bom and encoding != "utf-8":
                return Failure(name, f"a UTF-8 byte order mark contradicts the declared encoding {encoding}", line)
    try:
        text = (data[3:] if bom else data).decode(encoding)
    except UnicodeDecodeError as error:
        what = "UTF-8" if encoding == "utf-8" else encoding
        return Failure(name, f"not {what}", _line_of(data, error.start + 3 * bom))
    except (LookupError, ValueError) as error:  # codecs that are not about text, and broken ones
        return Failure(name, f"encoding {encoding} cannot be read: {error}".splitlines()[0], 1)
    if is_notebook:
        from frostline.lint.notebook import read_notebook

        notebook = read_notebook(text, name)
        return notebook if isinstance(notebook, Failure) else Source(name, notebook.text, bom=bom, notebook=notebook)
    # UTF-8 is written back as it was read; other encodings may know several ways to write a character.
    return Source(name, text, encoding, bom=bom, data=None if encoding == "utf-8" else data)


def _declared(data: bytes) -> tuple[str, int] | str:
    """The encoding that one of the first two lines declares, and that line; or why it cannot be used."""
    from codecs import lookup
    from tokenize import detect_encoding

    # Python ends lines at a carriage return too; the two first lines are all that is looked at.
    head = data[:HEAD].removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = head.split(b"\n", 2)[:2]
    # Bytes that are not UTF-8 are no matter yet: only the declaration is, and that is ASCII.
    lines = [bytes(byte if byte < 128 else 63 for byte in line) + b"\n" for line in lines]
    try:
        encoding, read = detect_encoding(iter(lines).__next__)
    except SyntaxError as error:
        return str(error)
    return lookup(encoding).name, len(read)


def _line_of(data: bytes, at: int) -> int:
    """The line of a byte, from 1."""
    before = data[:at]
    return 1 + before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n")


def _reason(error: OSError) -> str:
    """Why the system would not read a file, in a few words."""
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, FileNotFoundError):
        return "no such file"
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:]
