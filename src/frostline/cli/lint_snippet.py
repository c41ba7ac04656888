"""Lines of source with a gutter, and carets under what is wrong in them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from frostline.cli.paint import Paint
from frostline.errors import printable

# Python's own stops are 8 wide; as wide as most editors show them, more of a line fits.
_TAB = 4
# A range of more lines is shown by its first and its last ones.
_MOST_LINES = 6
_SHOWN_AT_EACH_END = 2
# What is seen of a line beside a range that leaves no room for more; marks take no more than that.
_LEAD = 4


@dataclass(frozen=True)
class Range:
    """A piece of source; lines and columns count from 1, the end is behind the last character."""

    line: int
    column: int
    end_line: int
    end_column: int


def snippet(lines: Sequence[str], place: Range, *, width: int, paint: Paint, style: str, more: str) -> list[str]:
    r"""The lines of a range between two of their neighbours, with carets under the range itself.

    Carets stand right under wide characters and behind tabs too. Lines that are wider than the terminal are cut on both
    sides, all at the same columns, so that the range is in sight.

    Args:
        lines: all lines of the file, or of the cell, without their ends.
        place: what is wrong.
        width: of the terminal.
        paint: colours, or does not.
        style: the colour of the carets.
        more: what stands where something was left out.

    Example:
        >>> lines = ["for p in net.parameters():", "    p.require_grad = False"]
        >>> print(*snippet(lines, Range(2, 7, 2, 19), width=80, paint=Paint(False), style="red", more="…"), sep="\n")
          |
        1 | for p in net.parameters():
        2 |     p.require_grad = False
          |       ^^^^^^^^^^^^
    """
    last = min(place.end_line, len(lines))
    shown = [number for number in (place.line - 1, *range(place.line, last + 1), last + 1) if 1 <= number <= len(lines)]
    rows = {number: Row(lines[number - 1]) for number in _some(shown, place.line, last)}
    gutter = len(str(max(rows, default=place.line)))
    carets = {number: _carets(row, number, place) for number, row in rows.items() if place.line <= number <= last}
    window = _window(rows, carets, max(width - gutter - 3, 20))
    bar = paint("|", "blue")
    found = [f"{' ' * gutter} {bar}"]
    before = 0
    for number, row in rows.items():
        text = row.cut(window, more)
        if not text.strip() and number not in carets:
            continue
        if before and number > before + 1:
            found.append(paint(more, "blue"))
        before = number
        found.append(f"{paint(f'{number:>{gutter}}', 'blue')} {bar} {text}".rstrip())
        if number in carets:
            start, end = (min(max(column - window[0], 0), window[1] - window[0]) for column in carets[number])
            under = paint("^" * max(end - start, 1), style)
            found.append(f"{' ' * gutter} {bar} {' ' * start}{under}")
    return found


class Row:
    """A line as a terminal shows it: what each character becomes, and where.

    Args:
        line: without its end.
    """

    def __init__(self, line: str) -> None:
        self.line = line
        self.pieces: list[str] = []
        self.starts: list[int] = []
        at = 0
        for char in line:
            piece = " " * (_TAB - at % _TAB) if char == "\t" else printable(char) if _width(char) else char
            self.pieces.append(piece)
            self.starts.append(at)
            at += sum(map(_width, piece))
        self.starts.append(at)

    def column(self, column: int) -> int:
        """Where a character stands, which counts from 1 in the line."""
        return self.starts[min(max(column - 1, 0), len(self.line))]

    def cut(self, window: tuple[int, int], more: str) -> str:
        """The piece of it in these columns, with marks where more of it is left out."""
        left, right = window
        if left == 0 and self.starts[-1] <= right:
            return "".join(self.pieces)
        # Its marks take the place of what they stand for, so that what is between stays in its columns.
        first = left + (len(more) if left else 0)
        end = right - (len(more) if self.starts[-1] > right else 0)
        inside = [i for i in range(len(self.pieces)) if self.starts[i] >= first and self.starts[i + 1] <= end]
        if not inside:
            return more if left and self.starts[-1] > left else ""
        lead = " " * (self.starts[inside[0]] - first)
        text = "".join(self.pieces[inside[0] : inside[-1] + 1])
        return f"{more if left else ''}{lead}{text}{more if self.starts[-1] > right else ''}"


def _some(shown: Sequence[int], first: int, last: int) -> Iterator[int]:
    """The numbers of lines without the middle of a long range."""
    if last - first + 1 <= _MOST_LINES:
        yield from shown
        return
    head, tail = first + _SHOWN_AT_EACH_END, last - _SHOWN_AT_EACH_END
    yield from (number for number in shown if number < head or number > tail)


def _carets(row: Row, number: int, place: Range) -> tuple[int, int]:
    """From which column to which one a line of the range is underlined; never its indentation."""
    indent = len(row.line) - len(row.line.lstrip()) + 1
    start = place.column if number == place.line else indent
    end = place.end_column if number == place.end_line else len(row.line.rstrip()) + 1
    left = row.column(start)
    return left, max(row.column(end), left + 1)


def _window(rows: dict[int, Row], carets: dict[int, tuple[int, int]], room: int) -> tuple[int, int]:
    """The columns that are shown of all lines: all of them, or those around what is wrong."""
    widest = max((row.starts[-1] for row in rows.values()), default=0)
    if widest <= room or not carets:
        return 0, room
    left, right = min(start for start, _ in carets.values()), max(end for _, end in carets.values())
    if right <= room - _LEAD:
        return 0, room
    if right - left > room - 2 * _LEAD:
        start = max(left - _LEAD, 0)
    else:
        start = max(min(left - (room - (right - left)) // 2, widest - room), 0)
    return start, start + room


def _width(char: str) -> int:
    """How many columns of a terminal a character takes.

    Source: Unicode Standard Annex 11, East Asian Width; combining characters stand on the one before.
    """
    if char.isascii():
        return 1
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
