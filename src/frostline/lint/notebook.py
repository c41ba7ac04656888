"""The code cells of a notebook as one text, and edits in it written back into the notebook's JSON."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from frostline.errors import printable
from frostline.lint.diagnostic import Edit, Failure
from frostline.lint.magics import without_magics

PYTHON = ("python", "ipython")
_BLANK = re.compile(r"[ \t\r\n]*")
_LINE_END = re.compile(r"\r\n|[\r\n]")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Cell:
    """One code cell.

    Attributes:
        number: from 1, as the notebook counts all its cells.
        written: its text, as the user sees it.
        span: where the value of its ``source`` stands in the notebook's JSON.
        start: the offset of its first character in the text of all cells.
        line: the number of its first line there.
    """

    number: int
    written: str
    span: tuple[int, int]
    start: int
    line: int

    @property
    def end(self) -> int:
        """The offset behind its last character in the text of all cells."""
        return self.start + len(self.written)


@dataclass(frozen=True)
class Notebook:
    """A notebook of format 4, whose code cells are read as one module: what one defines, later ones may use.

    Attributes:
        name: the file, as it is printed.
        raw: its JSON, as it was read.
        cells: the code cells; none where the notebook is in another language.
        text: all of them, joined by a line end, with magics replaced by Python that is as long.
        written: the same with the magics, character for character.
        masked: the ranges of the text that were replaced.
    """

    name: str
    raw: str
    cells: tuple[Cell, ...]
    text: str
    written: str
    masked: tuple[tuple[int, int], ...]

    @cached_property
    def _lines(self) -> list[int]:
        return [cell.line for cell in self.cells]

    @cached_property
    def _starts(self) -> list[int]:
        return [cell.start for cell in self.cells]

    @cached_property
    def _ascii_only(self) -> bool:
        """Whether the notebook writes other characters than ASCII as escapes."""
        return self.raw.isascii() and re.search(r"\\u(?!00[0-7])", self.raw) is not None

    def cell_of(self, line: int) -> tuple[int, int]:
        """The number of the cell that a line of the text stands in, and its line there, both from 1."""
        at = bisect_right(self._lines, line) - 1
        return (self.cells[at].number, line - self._lines[at] + 1) if at >= 0 else (0, line)

    def accepts(self, edit: Edit) -> bool:
        """Whether an edit stays within one cell and clear of magics."""
        at = bisect_right(self._starts, edit.start) - 1
        if at < 0:
            return False
        own = self._within(at, edit)
        if own.end > self.cells[at].end:
            return False
        if own.start == own.end:
            return not any(start < own.start < end for start, end in self.masked)
        return not any(start < own.end and own.start < end for start, end in self.masked)

    def edited(self, edits: Sequence[Edit]) -> Notebook:
        """The notebook after edits that it accepts, in the order of the text; only cells that they touch change."""
        by_cell: dict[int, list[Edit]] = {}
        for edit in edits:
            at = bisect_right(self._starts, edit.start) - 1
            by_cell.setdefault(at, []).append(self._within(at, edit))
        pieces: list[str] = []
        done = 0
        for at, own in by_cell.items():
            cell = self.cells[at]
            text, last = "", cell.start
            for edit in own:
                text += self.written[last : edit.start] + edit.text
                last = edit.end
            text += self.written[last : cell.end]
            start, end = cell.span
            if text != cell.written:
                pieces += self.raw[done:start], encoded(text, self.raw[start:end], ascii_only=self._ascii_only)
                done = end
        again = read_notebook("".join([*pieces, self.raw[done:]]), self.name)
        assert isinstance(again, Notebook)
        return again

    def _within(self, at: int, edit: Edit) -> Edit:
        """The same edit in a cell, if it takes along the line end that joins the cell to the next one."""
        end = self.cells[at].end
        if edit.start < edit.end == end + 1:
            return Edit(edit.start, end, edit.text.removesuffix("\n"))
        return edit


def read_notebook(raw: str, name: str) -> Notebook | Failure:
    """Find the code cells of a notebook.

    Args:
        raw: its JSON.
        name: the file, as it is printed.

    Returns:
        The notebook; or why it is none, with the line of the file.
    """
    try:
        top, listed = _walk(raw)
    except json.JSONDecodeError as error:
        return Failure(name, f"not JSON: {printable(error.msg)}", error.lineno, error.colno)
    except RecursionError:
        return Failure(name, "not a notebook: nested too deeply", 1)
    except ValueError as error:  # a number of more digits than Python converts
        return Failure(name, f"not a notebook: {printable(str(error))}", 1)
    if listed is None:
        return Failure(name, "not a notebook: it has no list of cells", 1)
    if top.get("nbformat") != 4:
        return Failure(name, f"a notebook of format {printable(str(top.get('nbformat')))}, only 4 can be read", 1)
    return _joined(raw, name, listed if _is_python(top) else [])


def encoded(text: str, old: str, *, ascii_only: bool) -> str:
    r"""The text of a cell as JSON, in the style that it had.

    Args:
        text: what the cell says now.
        old: the JSON of what it said: a string, or a list of lines; these keep their escapes where they are the same.
        ascii_only: write other characters than ASCII as escapes.

    Example:
        >>> print(encoded("a\nb", '[\n  "a"\n ]', ascii_only=False))
        [
          "a\n",
          "b"
         ]
    """
    if old.startswith('"'):
        return _string(text, ascii_only)
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    if not lines:
        return "[]"
    scanner = _Scanner(old)
    spans: list[tuple[str, int, int]] = []
    for _ in scanner.elements():
        begin = scanner.at
        spans.append((scanner.value(), begin, scanner.at))
    known = {value: old[start:end] for value, start, end in spans}
    items = [known.get(line) or _string(line, ascii_only) for line in lines]
    first, last = (spans[0][1], spans[-1][2]) if spans else (1, len(old) - 1)
    before, behind = old[1:first], old[last:-1]
    between = old[spans[0][2] : spans[1][1]] if len(spans) > 1 else "," + (before or " ")
    return "[" + before + between.join(items) + behind + "]"


def _string(text: str, ascii_only: bool) -> str:
    """A string as JSON; halves of surrogate pairs are escaped, because UTF-8 has none."""
    broken = re.search("[\ud800-\udfff]", text) is not None
    return json.dumps(text, ensure_ascii=ascii_only or broken)


class _Scanner:
    """Reads JSON piece by piece, so that the place of each piece is known.

    Who asks for members or elements reads the value of one before asking for the next.
    """

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.at = 0

    def peek(self) -> str:
        """The next character that is no blank; empty at the end."""
        blank = _BLANK.match(self.raw, self.at)
        self.at = self.at if blank is None else blank.end()
        return self.raw[self.at : self.at + 1]

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        value, self.at = _DECODER.raw_decode(self.raw, self.at)
        return value

    def members(self) -> Iterator[str]:
        """The keys of the next value, an object."""
        self.take("{")
        if self.peek() == "}":
            self.at += 1
            return
        while True:
            if self.peek() != '"':
                raise json.JSONDecodeError("Expecting property name enclosed in double quotes", self.raw, self.at)
            key = self.value()
            self.take(":")
            yield key
            if self.peek() != ",":
                break
            self.at += 1
        self.take("}")

    def elements(self) -> Iterator[str]:
        """The first character of each element of the next value, an array."""
        self.take("[")
        if self.peek() == "]":
            self.at += 1
            return
        while True:
            yield self.peek()
            if self.peek() != ",":
                break
            self.at += 1
        self.take("]")

    def take(self, delimiter: str) -> None:
        """Go past a delimiter."""
        if self.peek() != delimiter:
            raise json.JSONDecodeError(f"Expecting '{delimiter}' delimiter", self.raw, self.at)
        self.at += 1


_Listed = tuple[dict[str, Any], tuple[int, int]]


def _walk(raw: str) -> tuple[dict[str, Any], list[_Listed] | None]:
    """Everything at the top of a notebook but its cells; and these, each with the span of its source."""
    scanner = _Scanner(raw)
    top: dict[str, Any] = {}
    cells: list[_Listed] | None = None
    if scanner.peek() == "{":
        for key in scanner.members():
            if key == "cells" and scanner.peek() == "[":
                cells = [_cell(scanner, first) for first in scanner.elements()]
            else:
                top[key] = scanner.value()
    else:
        scanner.value()
    if scanner.peek():
        raise json.JSONDecodeError("Extra data", raw, scanner.at)
    return top, cells


def _cell(scanner: _Scanner, first: str) -> _Listed:
    """The next cell, with the span of its source; outputs are read over."""
    cell: dict[str, Any] = {}
    span = (0, 0)
    if first != "{":
        scanner.value()
        return cell, span
    for key in scanner.members():
        scanner.peek()
        start = scanner.at
        value = scanner.value()
        if key == "source":
            span = (start, scanner.at)
        if key in {"source", "cell_type", "metadata"}:
            cell[key] = value
    return cell, span


def _joined(raw: str, name: str, listed: Sequence[_Listed]) -> Notebook | Failure:
    """The notebook of these cells."""
    cells: list[Cell] = []
    texts: list[str] = []
    masked: list[tuple[int, int]] = []
    start, line = 0, 1
    for number, (cell, span) in enumerate(listed, 1):
        if cell.get("cell_type") != "code" or not _is_python_cell(cell):
            continue
        said = cell.get("source", "")
        if isinstance(said, list) and all(isinstance(each, str) for each in cast("list[Any]", said)):
            said = "".join(cast("list[str]", said))
        if not isinstance(said, str):
            at = raw.count("\n", 0, span[0]) + 1
            return Failure(name, f"not a notebook: the source of cell {number} is no text", at, 0, number)
        if span == (0, 0):
            continue  # it has no source at all
        text, replaced = without_magics(said)
        cells.append(Cell(number, said, span, start, line))
        texts.append(text)
        masked += [(start + one, start + other) for one, other in replaced]
        start += len(said) + 1
        line += len(_LINE_END.findall(said)) + 1
    written = "\n".join(cell.written for cell in cells)
    return Notebook(name, raw, tuple(cells), "\n".join(texts), written, tuple(masked))


def _is_python(top: dict[str, Any]) -> bool:
    """Whether a notebook is in Python, as far as it says."""
    metadata = _object(top.get("metadata"))
    language = _object(metadata.get("language_info")).get("name")
    language = language or _object(metadata.get("kernelspec")).get("language")
    return not isinstance(language, str) or language.lower().startswith(PYTHON)


def _is_python_cell(cell: dict[str, Any]) -> bool:
    """Whether a code cell is in Python: editors for several languages say so cell by cell."""
    language = _object(_object(cell.get("metadata")).get("vscode")).get("languageId")
    return not isinstance(language, str) or language.lower().startswith(PYTHON)


def _object(value: Any) -> dict[str, Any]:
    """A value of JSON if it is an object, else an empty one."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
