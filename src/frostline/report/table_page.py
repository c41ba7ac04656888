"""A page that is one table, and what was found beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline.report.page_templates import render_page


@dataclass(frozen=True)
class TablePage:
    """What the page says.

    Attributes:
        kind: what sort of page it is, in two or three words.
        title: what it is about.
        columns: the headings.
        rows: a text for each column; the first names the row.
        notes: what was found, each in lines of its own.
        generator: the program and version that made the page.
    """

    kind: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    generator: str = ""


def render_table(page: TablePage) -> str:
    """Render the page.

    Every text is escaped; the page loads nothing, and its content security policy forbids that it could. The same page
    gives the same text, byte for byte. Nothing is written.

    Raises:
        MissingExtra: jinja2 is not installed.

    Example:
        >>> "<code>bn&lt;1&gt;</code>" in render_table(TablePage("layers", "Net", ["layer"], [["bn<1>"]]))
        True
    """
    return render_page("table.html.j2", parts=("table",), page=page)
