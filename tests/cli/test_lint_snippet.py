"""Carets stand under what is wrong, whatever is in front of it, and long or many lines are cut around it."""

from __future__ import annotations

import unicodedata

import pytest

from frostline.cli.lint_snippet import Range, snippet
from frostline.cli.paint import Paint


def shown(lines: list[str], place: Range, width: int = 80) -> list[str]:
    return snippet(lines, place, width=width, paint=Paint(False), style="red", more="...")


def test_a_line_stands_between_its_neighbours() -> None:
    assert shown(["a = 1", "b = bad", "c = 3", "d = 4"], Range(2, 5, 2, 8)) == [
        "  |",
        "1 | a = 1",
        "2 | b = bad",
        "  |     ^^^",
        "3 | c = 3",
    ]


def test_empty_neighbours_and_the_ends_of_a_file_are_left_out() -> None:
    assert shown(["bad"], Range(1, 1, 1, 4)) == ["  |", "1 | bad", "  | ^^^"]
    assert shown(["", "bad", "   "], Range(2, 1, 2, 4)) == ["  |", "2 | bad", "  | ^^^"]


def test_the_gutter_is_as_wide_as_the_last_number() -> None:
    lines = [f"x{number}" for number in range(1, 12)]
    assert shown(lines, Range(9, 1, 9, 3)) == ["   |", " 8 | x8", " 9 | x9", "   | ^^", "10 | x10"]


@pytest.mark.parametrize(
    ("line", "column", "end", "text", "carets"),
    [
        ("\tbad", 2, 5, "    bad", "    ^^^"),
        ("a\tbad", 3, 6, "a   bad", "    ^^^"),
        ("日本 bad", 4, 7, "日本 bad", "     ^^^"),
        ("日本語", 2, 3, "日本語", "  ^^"),
        ("e\u0301 bad", 4, 7, "e\u0301 bad", "  ^^^"),
        ("a\x1b[31m bad", 8, 11, "a\\x1b[31m bad", "          ^^^"),
        ("bad", 3, 3, "bad", "  ^"),
        ("bad", 4, 9, "bad", "   ^"),
    ],
    ids=["tab", "tab behind text", "wide before", "wide itself", "combining", "control", "empty", "behind the end"],
)
def test_carets_stand_under_the_range_as_a_terminal_shows_it(
    line: str, column: int, end: int, text: str, carets: str
) -> None:
    assert shown([line], Range(1, column, 1, end)) == ["  |", f"1 | {text}", f"  | {carets}"]


def test_several_lines_are_underlined_without_their_indentation() -> None:
    lines = ["def f():", "    x = [", "        one,", "    ]", "    y"]
    assert shown(lines, Range(2, 9, 4, 6)) == [
        "  |",
        "1 | def f():",
        "2 |     x = [",
        "  |         ^",
        "3 |         one,",
        "  |         ^^^^",
        "4 |     ]",
        "  |     ^",
        "5 |     y",
    ]


def test_the_middle_of_many_lines_is_left_out() -> None:
    lines = [f"x{number}" for number in range(1, 20)]
    found = shown(lines, Range(3, 1, 17, 3))
    assert [line.split(" |")[0].strip() for line in found if "^" not in line] == [
        "",
        "2",
        "3",
        "4",
        "...",
        "16",
        "17",
        "18",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("before", [0, 30, 300])
@pytest.mark.parametrize("after", [0, 300])
@pytest.mark.parametrize("char", ["a", "語"])
def test_long_lines_are_cut_around_the_range(width: int, before: int, after: int, char: str) -> None:
    line = f"{char * before}WRONG{char * after}"
    bar, text, carets = shown([line], Range(1, before + 1, 1, before + 6), width)
    assert bar == "  |"
    columns = [2 if unicodedata.east_asian_width(each) == "W" else 1 for each in text]
    assert sum(columns) <= width
    at = text.index("WRONG")
    assert sum(columns[:at]) == carets.index("^")
    assert carets.count("^") == len("WRONG")


def test_a_range_wider_than_the_terminal_fills_it() -> None:
    line = "x = " + "y" * 200
    _, text, carets = shown([line], Range(1, 5, 1, 205), 60)
    assert text == f"1 | x = {'y' * 49}..."
    assert carets == f"  |     {'^' * 52}"


def test_neighbours_are_cut_at_the_same_columns() -> None:
    lines = ["a" * 300, " " * 200 + "WRONG" + "b" * 100, "short"]
    _, above, line, carets = shown(lines, Range(2, 201, 2, 206), 60)
    assert above == f"1 | ...{'a' * 50}..."
    assert line.index("WRONG") == carets.index("^")


def test_colour_is_for_the_gutter_and_the_carets() -> None:
    found = snippet(["bad"], Range(1, 1, 1, 4), width=80, paint=Paint(True), style="red", more="…")
    assert found == [
        "  \x1b[34m|\x1b[0m",
        "\x1b[34m1\x1b[0m \x1b[34m|\x1b[0m bad",
        "  \x1b[34m|\x1b[0m \x1b[31m^^^\x1b[0m",
    ]
