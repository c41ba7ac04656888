"""A page that is one table."""

from __future__ import annotations

from frostline.report import TablePage, render_table


def test_every_text_is_escaped_and_nothing_is_loaded():
    page = TablePage("layers", "<b>Net</b>", ["layer", "<i>type"], [["a<script>", "x & y"]], ["F107 warning: <u>"])
    text = render_table(page)
    assert text == render_table(page)
    for raw, safe in (("<b>Net", "&lt;b&gt;Net"), ("a<script>", "a&lt;script&gt;"), ("<u>", "&lt;u&gt;")):
        assert raw not in text
        assert safe in text
    assert "x &amp; y" in text
    assert "default-src 'none'" in text
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")


def test_without_findings_there_is_no_heading_for_them():
    assert "Notes" not in render_table(TablePage("layers", "Net", ["layer"], [["bn"]]))
