"""Tables for terminals and notebooks."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.errors import printable
from frostline.tables import ELLIPSIS, fitted, html_table, html_text, text_table

CELLS = st.one_of(
    st.text(st.characters(exclude_categories=["C", "Z"]), max_size=30),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True),
)


def test_values_are_written_for_people() -> None:
    rows = [["a", None], ["b", True], ["c", False], ["d", 1234567], ["e", 0.000123456], ["f", float("nan")], ["g", "x"]]
    assert text_table(["k", "value"], rows).splitlines() == [
        "k  value",
        "─  ─────────",
        "a  –",
        "b  yes",
        "c  no",
        "d  1,234,567",
        "e  0.000123",
        "f  nan",
        "g  x",
    ]


def test_a_table_without_rows_is_its_headings() -> None:
    assert text_table(["path", "role"], []) == "path  role\n────  ────"


def test_the_first_column_gives_way_in_its_middle() -> None:
    path = "layer1.0.block.conv.parametrizations.weight.original0"
    table = text_table(["path", "role"], [[path, "weight"]], width=40)
    last = table.splitlines()[-1]
    assert len(last) == 40
    shown = last.split("  ")[0]
    left, cut, right = shown.partition(ELLIPSIS)
    assert cut == ELLIPSIS
    assert path.startswith(left)
    assert path.endswith(right)
    assert left
    assert right


def test_without_a_width_nothing_is_cut() -> None:
    path = "x" * 500
    assert path in text_table(["path"], [[path]])


def test_the_first_column_never_grows_to_give_way() -> None:
    lines = text_table(["a", "b"], [["x", "y" * 50]], width=20).splitlines()
    assert lines[1] == "─  " + "─" * 50


def test_a_line_break_in_a_cell_does_not_break_the_table() -> None:
    lines = text_table(["path", "value"], [["a", "one\ntwo"], ["b", "three"]]).splitlines()
    assert lines[2:] == ["a     one two", "b     three"]


def test_a_name_from_a_file_cannot_play_with_the_terminal() -> None:
    name = "fc.\x1b[31mweight\x07"
    lines = text_table(["path", "value"], [[name, "a\tb"]]).splitlines()
    assert lines[2] == r"fc.\x1b[31mweight\x07  a\tb"
    assert all(line.isprintable() for line in lines)
    assert "\x1b" not in html_table(["path"], [[name]])


@settings(deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=8), st.none() | st.integers(1, 120))
def test_columns_line_up_and_no_line_is_wider_than_the_rule(rows: list[tuple[object, ...]], width: int | None) -> None:
    lines = text_table(["path", "role", "what"], rows, width=width).split("\n")
    assert len(lines) == len(rows) + 2
    rule = lines[1]
    assert set(rule) <= {"─", " "}
    assert all(len(line) <= len(rule) for line in lines)
    starts = [i for i in range(len(rule)) if rule[i] == "─" and (i == 0 or rule[i - 1] == " ")]
    assert len(starts) == 3
    for line in lines:
        padded = line.ljust(len(rule))
        for start in starts[1:]:
            assert padded[start - 2 : start] == "  "
    if width is not None and len(rule) > width:
        # Only the first column gives way, and not below 12.
        assert starts[1] - 2 <= 12


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.caption = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.tags[-1] == "caption":
            self.caption += data
        else:
            self.cells[-1] += data


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_html_says_what_was_put_in_and_nothing_else(cell: str, caption: str) -> None:
    cell, caption = (" ".join(text.replace("\0", "").split()) for text in (cell, caption))
    reader = _Reader()
    reader.feed(html_table(["path"], [[f"<script>{cell}"]], caption=caption))
    expected = ["table", *(["caption"] if caption else []), "thead", "tr", "th", "tbody", "tr", "td"]
    assert reader.tags == expected
    assert reader.cells == ["path", f"<script>{printable(cell)}"]
    assert reader.caption == caption


def test_naive_html_would_run_what_is_in_a_cell() -> None:
    """The twin: without escaping the same check sees a tag that nobody wrote."""
    reader = _Reader()
    reader.feed("<table><tbody><tr><td><script>alert(1)</td></tr></tbody></table>")
    assert "script" in reader.tags


@pytest.mark.parametrize("quote", ["'", '"', "&", "<", ">"])
def test_special_characters_are_escaped_in_headings_and_captions(quote: str) -> None:
    text = html_table([quote], [], caption=quote)
    assert text.count(quote) == html_table(["x"], [], caption="x").count(quote) + (2 if quote == "&" else 0)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=4), st.integers(20, 100))
@settings(max_examples=50, deadline=None)
def test_a_fitted_table_is_no_wider_than_its_room(rows: list[tuple[object, ...]], room: int) -> None:
    with fitted(room):
        table = text_table(["path", "role", "how it is held"], rows)
    assert max(map(len, table.splitlines()), default=0) <= room
    with fitted(None):
        assert text_table(["path"], [["x" * 500]]).splitlines()[-1] == "x" * 500


def test_where_words_would_break_rows_become_blocks() -> None:
    with fitted(24):
        table = text_table(["path", "checkpoint"], [["layer1.0", "backbone.layer1.0.weight"], ["fc", None]])
    assert table.splitlines() == ["layer1.0", "  checkpoint: backbone.l", "    ayer1.0.weight", "fc"]


def test_text_for_a_notebook_is_escaped_in_its_lines() -> None:
    assert html_text("<b>\n  \x1b[1m") == "<pre>&lt;b&gt;\n  \\x1b[1m</pre>"
