"""Parsing answers, whatever it is given."""

from __future__ import annotations

import ast
import gc
import json
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.lint.diagnostic import Failure
from frostline.lint.parsing import TOO_DEEP, parse
from frostline.lint.source import Source, source_from_bytes


def notebook(*cells: str) -> Source:
    listed = [{"cell_type": "code", "metadata": {}, "source": cell} for cell in cells]
    listed.insert(0, {"cell_type": "markdown", "metadata": {}, "source": "# Title"})
    source = source_from_bytes(json.dumps({"nbformat": 4, "metadata": {}, "cells": listed}).encode(), "a.ipynb")
    assert isinstance(source, Source)
    return source


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("x = = 1\n", 1, 5),
        ("漢 = '🥶' + ) \n", 1, 11),
        ("if x:\ny\n", 2, 1),
        ("x = (\n", 1, 5),
        ("a = 1\r\nb = 'x\r\n", 2, 5),
        ("a\r\rb b\r", 3, 3),
        ("\tx\n  y\n", 1, 1),
    ],
)
def test_syntax_errors_have_their_place_in_characters(text: str, line: int, column: int) -> None:
    failure = parse(Source("a.py", text))
    assert isinstance(failure, Failure)
    assert (failure.file, failure.line, failure.cell) == ("a.py", line, 0)
    assert failure.column == column
    assert failure.message


@pytest.mark.parametrize(
    "text",
    [
        "(" * 1000 + ")" * 1000,
        "-" * 100_000 + "1",
        "x" + ".a" * 100_000,
        "1" + "+1" * 100_000,
        "".join(" " * i + "if 1:\n" for i in range(150)) + " " * 150 + "x",
        "f" + "(x)" * 50_000,
    ],
)
def test_deep_nesting_is_no_crash(text: str) -> None:
    assert parse(Source("a.py", text)) == Failure("a.py", TOO_DEEP, *place(text))


def place(text: str) -> tuple[int, int]:
    """Where this Python sees the limit; nowhere if it ran out of stack."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        return error.lineno or 0, error.offset or 0
    except (RecursionError, MemoryError):
        pass
    return 0, 0


def test_warnings_about_the_source_are_not_given() -> None:
    text = "import re\nre.compile('\\d')\nx = 1if y else 2\nx is 'a'\n"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ast.parse(text)
    assert seen  # this Python has something to say
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        assert isinstance(parse(Source("a.py", text)), ast.Module)
    assert given == []
    assert isinstance(parse(Source("a.py", text)), ast.Module)  # nor are they errors where warnings are


@pytest.mark.parametrize("collecting", [True, False])
@pytest.mark.parametrize("text", ["x", "x x"])
def test_garbage_collection_is_as_it_was(text: str, collecting: bool) -> None:
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        parse(Source("a.py", text))
        assert gc.isenabled() is collecting
    finally:
        (gc.enable if before else gc.disable)()


def test_places_in_notebooks_are_within_the_cell() -> None:
    assert parse(notebook("a\nb", "c\nd = =")) == Failure("a.ipynb", "invalid syntax", 2, 5, 3)


@pytest.mark.parametrize(
    ("cell", "what"), [("x = '\0'", "a null character"), ("\nx = '\ud83d'", "half of a surrogate pair")]
)
def test_characters_that_no_source_may_hold(cell: str, what: str) -> None:
    assert parse(notebook(cell)) == Failure("a.ipynb", f"holds {what}", cell.count("\n") + 1, 6, 2)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_has_an_answer(text: str) -> None:
    parsed = parse(Source("a.py", text))
    assert isinstance(parsed, (ast.Module, Failure))
