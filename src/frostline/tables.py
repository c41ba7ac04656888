"""Plain tables for terminals and notebooks; pure Python, knows nothing of models."""

from __future__ import annotations

import textwrap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from html import escape

from frostline.errors import printable

ELLIPSIS = "…"
_GAP = 2
# How narrow the first column gets before the others are wrapped, and after.
_READABLE, _NARROWEST = 32, 12
# Other columns that are no wider are wrapped last: a number stays with its unit.
_SHORT = 14
_ROOM: ContextVar[int | None] = ContextVar("room", default=None)


@contextmanager
def fitted(room: int | None) -> Generator[None]:
    """Tables that are made inside are no wider than this, whoever asks for them by ``str``.

    Args:
        room: columns of the terminal; ``None`` leaves tables as they are.

    Example:
        >>> with fitted(26):
        ...     print(text_table(["path", "how"], [["fc.weight", "a new layer of the model"]]))
        path       how
        ─────────  ───────────────
        fc.weight  a new layer of
                   the model
    """
    token = _ROOM.set(room)
    try:
        yield
    finally:
        _ROOM.reset(token)


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None, indent: int = 0
) -> str:
    """Lay rows out in columns that line up.

    Args:
        columns: the headings.
        rows: one value per column each; ``None`` is printed as an en dash.
        width: the widest line wanted; the first column gives way, its middle cut out, down to 12 characters.
            ``None`` is unlimited. Inside :func:`fitted` nothing is wider than its room: the first column gives way,
            others are wrapped at their spaces, and where that is not enough each row becomes a block of lines.
        indent: spaces before each line.

    Example:
        >>> print(text_table(["path", "moved"], [["bn.running_mean", True], ["fc.weight", None]]))
        path             moved
        ───────────────  ─────
        bn.running_mean  yes
        fc.weight        –
    """
    cells = [[cell_text(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    if width is not None and _total(widths) > width - indent:
        widths[0] = min(widths[0], max(_NARROWEST, widths[0] - (_total(widths) - (width - indent))))
    lines: list[str] | None = None
    room = _ROOM.get()
    if room is not None and _total(widths) > room - indent:
        squeezed = _squeezed(columns, cells, widths, room - indent)
        if squeezed is None:
            lines = _blocks(columns, cells, max(room - indent, _NARROWEST))
        else:
            widths = squeezed
    if lines is None:
        lines = [*_line(columns, widths), *_line(["─" * w for w in widths], widths)]
        lines += [line for row in cells for line in _line(row, widths)]
    return "\n".join(" " * indent + line for line in lines)


def html_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> str:
    """The same table for a notebook; every cell is escaped.

    Example:
        >>> html_table(["path"], [["<b>"]])
        '<table><thead><tr><th>path</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell_text(value))}</td>" for value in row) + "</tr>" for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cell_text(value: object) -> str:
    """A value as it stands in a cell: one line, control characters written out, ``None`` as an en dash.

    Example:
        >>> [cell_text(value) for value in (None, True, 1234, 0.12345)]
        ['–', 'yes', '1,234', '0.123']
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, int):
        return f"{value:,}"
    return printable(" ".join(str(value).splitlines()))


def html_text(text: object) -> str:
    """What prints itself as text, for a notebook: escaped, in its lines, in the colours of the notebook.

    Example:
        >>> html_text("<fc> moved")
        '<pre>&lt;fc&gt; moved</pre>'
    """
    return f"<pre>{escape(chr(10).join(map(printable, str(text).splitlines())))}</pre>"


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _squeezed(
    columns: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int], room: int
) -> list[int] | None:
    """Widths that fit into the room; ``None`` where words would have to be broken."""
    squeezed = list(widths)

    def give(column: int, least: int) -> None:
        over = _total(squeezed) - room
        if over > 0:
            squeezed[column] = min(squeezed[column], max(least, squeezed[column] - over))

    others = sorted(range(1, len(columns)), key=lambda column: -widths[column])
    words = {i: max((len(word) for line in [columns, *cells] for word in line[i].split()), default=1) for i in others}
    give(0, _READABLE)
    for i in others:
        give(i, max(words[i], _SHORT))
    give(0, max(_NARROWEST, len(columns[0])))
    for i in others:
        give(i, words[i])
    return squeezed if _total(squeezed) <= room else None


def _blocks(columns: Sequence[str], cells: Sequence[Sequence[str]], room: int) -> list[str]:
    """Each row as lines of its own: the first cell, and under it the others that say something, with their headings."""
    lines: list[str] = []
    for first, *others in cells:
        lines += textwrap.wrap(first, room, subsequent_indent="    ", break_on_hyphens=False) or [ELLIPSIS]
        told = [
            f"{column}: {cell}" if column else cell
            for column, cell in zip(columns[1:], others, strict=True)
            if cell and cell != cell_text(None)
        ]
        lines += textwrap.wrap(
            "; ".join(told), room, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
        )
    return lines


def _line(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """A row; one line, unless a cell behind the first has to be wrapped."""
    wrapped = [
        [_fit(cell, w)] if i == 0 or len(cell) <= w else textwrap.wrap(cell, w, break_on_hyphens=False)
        for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    height = max(map(len, wrapped), default=1)
    return [
        (" " * _GAP)
        .join((part[i] if i < len(part) else "").ljust(w) for part, w in zip(wrapped, widths, strict=True))
        .rstrip()
        for i in range(height)
    ]


def _fit(text: str, width: int) -> str:
    """Cut the middle out: the two ends of a dotted path say the most."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return text[:left] + ELLIPSIS + text[len(text) - (width - 1 - left) :]
