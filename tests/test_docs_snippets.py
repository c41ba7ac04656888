"""How blocks are found, and when a quoted text counts as what was printed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[1] / "docs" / "site" / "snippets.py"
spec = importlib.util.spec_from_file_location("docs_snippets_alone", PATH)
assert spec is not None
assert spec.loader is not None
snippets = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = snippets
spec.loader.exec_module(snippets)


@pytest.mark.parametrize(
    ("quoted", "printed"),
    [
        ("accuracy 95.2%\n", "accuracy 92.0%\n"),
        ("moved by 0.28, 410 times\n", "moved by 0.271, 410 times\n"),
        ("a  b\n──  ──\n", "a b\n─── ──\n"),
        ("first\n...\nlast\n", "first\nsecond\nthird\nlast\n"),
        ("first\n...\n", "first\nsecond\n"),
        ("trunk.1.running_mean\n", "trunk.1.running_mean\n"),
    ],
)
def test_words_and_whole_numbers_are_equal_and_figures_near(quoted, printed) -> None:
    assert snippets.unlike(quoted, printed) == ""


@pytest.mark.parametrize(
    ("quoted", "printed"),
    [
        ("accuracy 95.2%\n", "accuracy 58.7%\n"),
        ("moved 6 tensors\n", "moved 7 tensors\n"),
        ("nothing moved\n", "something moved\n"),
        ("first\nlast\n", "first\nsecond\nlast\n"),
        ("first\n", "first\nsecond\n"),
        ("first\nsecond\n", "first\n"),
        ("trunk.1.weight\n", "trunk.2.weight\n"),
        ("moved by 0.28\n", "moved by 2.8\n"),
    ],
)
def test_what_was_not_printed_is_named(quoted, printed) -> None:
    assert snippets.unlike(quoted, printed)


def test_blocks_have_their_page_line_and_language(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(snippets, "DOCS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```python\nx = 1\n```\n\n- a list\n\n  ```\n  shell\n  ```\n")
    first, second = snippets.blocks(page)
    assert first == snippets.Block("page.md", 4, "python", "x = 1\n")
    assert (second.language, second.text) == ("", "shell\n")


def test_a_comment_with_code_is_a_block_that_no_page_shows(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(snippets, "DOCS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("<!-- python\nx = 1\n-->\n\n```python\nprint(x)\n```\n\n<!-- a remark -->\n", encoding="utf-8")
    found = [(block.line, block.language, block.text) for block in snippets.blocks(page)]
    assert found == [(2, "python", "x = 1\n"), (6, "python", "print(x)\n")]
