"""Plain tables for terminals and notebooks; pure Python, knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from frostline.errors import printable

ELLIPSIS = "…"


def text_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, width: int | None = None) -> str:
    """Lay rows out in columns that line up.

    Args:
        columns: the headings.
        rows: one value per column each; ``None`` is printed as an en dash.
        width: the widest line wanted; the first column gives way, its middle cut out, down to 12 characters.
            ``None`` is unlimited.

    Example:
        >>> print(text_table(["path", "moved"], [["bn.running_mean", True], ["fc.weight", None]]))
        path             moved
        ───────────────  ─────
        bn.running_mean  yes
        fc.weight        –
    """
    cells = [[cell_text(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        widths[0] = min(widths[0], max(12, width - sum(widths[1:]) - 2 * (len(widths) - 1)))
    lines = [_line(columns, widths), _line(["─" * w for w in widths], widths)]
    lines += [_line(row, widths) for row in cells]
    return "\n".join(lines)


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


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(_fit(cell, w).ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip()


def _fit(text: str, width: int) -> str:
    """Cut the middle out: the two ends of a dotted path say the most."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return text[:left] + ELLIPSIS + text[len(text) - (width - 1 - left) :]
