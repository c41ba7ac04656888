"""Comments that silence findings."""

from __future__ import annotations

import json
import tokenize

import pytest

from frostline.lint.noqa import Silenced
from frostline.lint.source import Source, source_from_bytes


def covers(text: str, code: str = "F107", first: int = 1, last: int | None = None) -> bool:
    return Silenced.of(Source("a.py", text)).covers(code, first, first if last is None else last)


@pytest.mark.parametrize(
    "comment",
    [
        "# noqa",
        "#noqa",
        "# NOQA",
        "# NoQA:F107",
        "# noqa: F107",
        "# noqa : f107",
        "# noqa: E501,F107",
        "# noqa: E501 F107",
        "# noqa: E501, F107 because it is meant",
        "# noqa: F1",
        "# noqa: F107,",
        "# noqa because",
        "# noqa: because",
        "# type: ignore  # noqa: F107",
    ],
)
def test_a_comment_that_silences(comment: str) -> None:
    assert covers(f"x = 1  {comment}\n")
    assert covers(f"é = 1  {comment}")


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "# noqa: F102",
        "# noqa: E501,W605",
        "# noqax",
        "# no qa",
        "# see noqa",
        "# noqa-file",
        "# frostline: noqa",
        "# F107",
    ],
)
def test_a_comment_that_does_not(comment: str) -> None:
    assert not covers(f"x = 1  {comment}\n")


def test_the_first_and_the_last_line_of_a_statement_count() -> None:
    text = "f(  # noqa: F101\n  a,  # noqa: F102\n)  # noqa: F103\n"
    assert [covers(text, code, 1, 3) for code in ("F101", "F102", "F103")] == [True, False, True]
    assert [covers(text, code, 2) for code in ("F101", "F102", "F103")] == [False, True, False]


@pytest.mark.parametrize(
    "text", ["x = '# noqa'\n", '"""\n# noqa\n"""\n', "'# noqa'  # a comment\n", "r'\\'# noqa: F107'"]
)
def test_strings_silence_nothing(text: str) -> None:
    assert not any(covers(text, first=line) for line in (1, 2, 3))


def test_a_comment_behind_a_string_that_looks_like_one() -> None:
    assert covers("x = '# noqa: F102'  # noqa: F107")
    assert not covers("x = '# noqa: F107'  # noqa: F102")


@pytest.mark.parametrize(
    ("comment", "codes"),
    [
        ("# frostline: noqa", ["F107", "M201"]),
        ("#frostline:noqa", ["F107", "M201"]),
        ("# flake8: noqa", ["F107", "M201"]),
        ("# Ruff: NOQA", ["F107", "M201"]),
        ("# frostline: noqa: F107", ["F107"]),
        ("# ruff: noqa: E501, M2", ["M201"]),
        ("# pylint: noqa", []),
        ("# frostline: noqax", []),
        ("x  # frostline: noqa", []),
        ("'# frostline: noqa'", []),
        ("'''\n# frostline: noqa\n'''", []),
    ],
)
def test_whole_files(comment: str, codes: list[str]) -> None:
    text = f"x = 1\nif x:\n    y\n{comment}\nz"
    assert [code for code in ("F107", "M201") if covers(text, code, 1)] == codes


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_those_of_the_source(end: str) -> None:
    text = end.join(["'\u2028'", "\f", "x  # noqa", "y"])
    assert [line for line in range(1, 5) if covers(text, first=line)] == [3]


def test_what_cannot_be_tokenized_is_searched_by_line() -> None:
    text = "x = (  # noqa\n'''\ny  # noqa: F102\n"
    assert [line for line in range(1, 4) if covers(text, first=line)] == [1]
    assert covers(text, "F102", 3)


def test_a_file_without_findings_is_not_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(tokenize, "generate_tokens", refuse)
    silenced = Silenced.of(Source("a.py", "x = 1  # noqa\ny = 2\n"))
    assert not silenced.covers("F107", 2, 2)
    with pytest.raises(AssertionError):
        silenced.covers("F107", 1, 1)


def test_cells_of_notebooks() -> None:
    cells = [{"cell_type": "code", "source": source} for source in ("%pip x # noqa\na # noqa", "b\nc # noqa: M201")]
    source = source_from_bytes(json.dumps({"nbformat": 4, "cells": cells}).encode(), "a.ipynb")
    assert isinstance(source, Source)
    silenced = Silenced.of(source)
    assert [line for line in range(1, 5) if silenced.covers("M201", line, line)] == [2, 4]
