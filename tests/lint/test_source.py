"""Places in source text, edits of it, and the way from bytes and back."""

from __future__ import annotations

import ast
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.lint.diagnostic import Edit, Failure
from frostline.lint.source import Source, read_source, source_from_bytes

ENDS = ["\n", "\r\n", "\r"]
# Characters that str.splitlines takes for line ends and Python's tokenizer does not, and some of each width.
CHARACTERS = st.sampled_from([*"ab \t", "\f", "\v", "\x1c", "\x85", "\u2028", "é", "漢", "🥶", "\u0301", *ENDS])
TEXTS = st.lists(CHARACTERS, max_size=40).map("".join)


def read(data: bytes, name: str = "a.py") -> Source:
    source = source_from_bytes(data, name)
    assert isinstance(source, Source)
    return source


def naive_lines(text: str) -> list[str]:
    """Lines with their ends, found one character after the other."""
    lines, line = [], ""
    for at, char in enumerate(text):
        line += char
        if char == "\n" or (char == "\r" and text[at + 1 : at + 2] != "\n"):
            lines.append(line)
            line = ""
    return [*lines, line]


def naive_apply(text: str, edits: Sequence[Edit]) -> str:
    """The edits made from the last to the first."""
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


@given(TEXTS)
def test_every_offset_has_a_place_and_every_place_its_offset(text: str) -> None:
    source = Source("a.py", text)
    lines = naive_lines(text)
    offset = 0
    for number, line in enumerate(lines, 1):
        assert source.line_text(number) == line.rstrip("\r\n")
        for column in range(len(line)):
            assert source.position(offset) == (number, column + 1)
            assert source.offset(number, len(line[:column].encode())) == offset
            offset += 1
    assert source.position(len(text)) == (len(lines), len(lines[-1]) + 1)
    assert source.line_count == len(lines) - (lines[-1] == "")


@given(TEXTS, st.lists(st.integers(0, 40), max_size=8), st.lists(st.sampled_from(["", "x", "é\n"]), min_size=4))
def test_edits_are_made_as_one_by_one_from_the_end(text: str, cuts: list[int], new: list[str]) -> None:
    places = sorted({cut for cut in cuts if cut <= len(text)})
    edits = [Edit(a, b, word) for a, b, word in zip(places[::2], places[1::2], new, strict=False)]
    assert Source("a.py", text).apply(edits[::-1]).text == naive_apply(text, edits)


@given(TEXTS, st.booleans())
def test_bytes_come_back(text: str, bom: bool) -> None:
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode()
    source = read(data)
    assert (source.text, source.bom, source.to_bytes()) == (text, bom, data)


def test_the_tree_of_a_file_with_wide_characters_and_tabs() -> None:
    text = 'def f(π):\n\tname = "🥶漢", π.weight; return π.bias  # é\r\n\tπ.grad\n'
    source = Source("a.py", text)
    names = {source.segment(node) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
    assert names == {"π.weight", "π.bias", "π.grad"}
    node = next(node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Return))
    assert source.position(source.start(node)) == (2, 25)
    assert source.indent_of(2) == "\t"
    assert source.line_text(2) == '\tname = "🥶漢", π.weight; return π.bias  # é'


def test_the_naive_way_to_split_lines_is_wrong() -> None:
    text = 'a = "x\u2028y\f"\nb\n'
    assert [text.splitlines()[2], Source("a.py", text).line_text(2)] == ['"', "b"]
    assert ast.parse(text).body[1].lineno == 2


@pytest.mark.parametrize("place", [(9, 0), (2, 99), (1, -5)])
def test_places_that_do_not_exist_are_the_nearest_end(place: tuple[int, int]) -> None:
    assert Source("a.py", "a\nb\n").offset(*place) in {0, 4}


@pytest.mark.parametrize(
    ("text", "newline"), [("", "\n"), ("a\r\nb\r\nc\n", "\r\n"), ("a\rb\rc\n", "\r"), ("a\r\nb\n", "\n")]
)
def test_the_line_end_that_is_used_most(text: str, newline: str) -> None:
    assert Source("a.py", text).newline == newline


def test_lines_are_inserted_with_the_files_own_end() -> None:
    source = Source("a.py", "if a:\r\n  b\r\n  c")
    above, below = source.line_above(2, "  x"), source.line_below(3, "  y")
    assert source.apply([above, below]).text == "if a:\r\n  x\r\n  b\r\n  c\r\n  y"


def test_insertions_at_one_place_keep_their_order_and_stand_before_a_replacement() -> None:
    edits = [Edit(1, 2, "B"), Edit(1, 1, "1"), Edit(1, 1, "2")]
    assert Source("a.py", "abc").apply(edits).text == "a12Bc"


@pytest.mark.parametrize(
    "edits",
    [[Edit(0, 2, ""), Edit(1, 3, "")], [Edit(0, 2, ""), Edit(1, 1, "x")], [Edit(0, 1, "x")] * 2, [Edit(2, 9, "")]],
)
def test_edits_that_overlap_or_lie_outside_are_refused(edits: list[Edit]) -> None:
    with pytest.raises(ValueError, match=r"a\.py: the edits? at"):
        Source("a.py", "abc").apply(edits)


def test_what_an_edit_leaves_as_it_is() -> None:
    data = b"\xef\xbb\xbfa\r\nb\rc\n\fd"
    source = read(data)
    assert source.apply([]) is source
    assert source.apply([Edit(0, 1, "A")]).to_bytes() == b"\xef\xbb\xbfA\r\nb\rc\n\fd"


@pytest.mark.parametrize(
    ("data", "text", "encoding"),
    [
        (b"# -*- coding: latin-1 -*-\nx = '\xe9'\n", "# -*- coding: latin-1 -*-\nx = 'é'\n", "iso8859-1"),
        (b"#!/bin/python\r# vim: set fileencoding=cp1252 :\r'\x80'", None, "cp1252"),
        (b"# coding: utf8\n'\xc3\xa9'", "# coding: utf8\n'é'", "utf-8"),
        (b"x = 1\n\n# coding: latin-1\n", None, "utf-8"),
        (b"x = 1\n# coding: latin-1\n", None, "utf-8"),
        (b"# \xe9 coding: latin-1\n", "# é coding: latin-1\n", "iso8859-1"),
        (b"# coding: iso-2022-jp\n'\x1b$B4A\x1b(B\x1b(B'", "# coding: iso-2022-jp\n'漢'", "iso2022_jp"),
        (b"\xef\xbb\xbf# coding: utf-8\n", "# coding: utf-8\n", "utf-8"),
    ],
)
def test_declared_encodings_are_honoured_and_kept(data: bytes, text: str | None, encoding: str) -> None:
    source = read(data)
    assert source.encoding == encoding
    assert text is None or source.text == text
    assert source.to_bytes() == data


def test_a_fix_keeps_the_declared_encoding() -> None:
    source = read(b"# coding: latin-1\r\nx = '\xe9'\r\n")
    assert source.apply([Edit(19, 20, "y")]).to_bytes() == b"# coding: latin-1\r\ny = '\xe9'\r\n"
    with pytest.raises(UnicodeEncodeError):
        source.apply([Edit(19, 20, "漢")]).to_bytes()


@pytest.mark.parametrize(
    ("data", "message", "line"),
    [
        (b"a\r\nb\rc\n'\xe9'\n", "not UTF-8", 4),
        (b"\xef\xbb\xbf\n\xff", "not UTF-8", 2),
        (b"\xff\xfea\0", "not UTF-8, but UTF-16", 1),
        (b"a\nb\0\n", "holds a null byte", 2),
        (b"# coding: klingon\n", "unknown encoding: klingon", 1),
        (b"# coding: rot13\nn\n", "encoding rot-13 cannot be read: 'rot-13' is not a text encoding", 1),
        (b"\n# coding: ascii\n\n'\xe9'", "not ascii", 4),
        (b"\xef\xbb\xbf\n# coding: ascii\n", "a UTF-8 byte order mark contradicts the declared encoding ascii", 2),
    ],
)
def test_bytes_that_are_no_text_are_named_with_their_line(data: bytes, message: str, line: int) -> None:
    failure = source_from_bytes(data, "a.py")
    assert isinstance(failure, Failure)
    assert (failure.file, failure.message.partition(";")[0], failure.line) == ("a.py", message, line)


def test_a_file_is_read_under_the_name_that_is_printed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"x\r\n")
    source = read_source(tmp_path / "a.py", "./a.py")
    assert isinstance(source, Source)
    assert (source.path, source.text, source.is_notebook, source.cell_of(1)) == ("./a.py", "x\r\n", False, (0, 1))


def test_what_cannot_be_read_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "loop.py").symlink_to(tmp_path / "loop.py")
    os.mkfifo(tmp_path / "pipe.py")
    names = ["gone.py", ".", "pipe.py", "loop.py", "nul\0.py"]
    failures = [read_source(tmp_path / name, name) for name in names]
    assert failures == [
        Failure("gone.py", "no such file"),
        Failure(".", "a folder, not a file"),
        Failure("pipe.py", "not a regular file"),
        Failure("loop.py", "too many levels of symbolic links"),
        Failure("nul\0.py", "embedded null byte"),
    ]


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    assert read_source(tmp_path / "a.py", "a.py") == Failure("a.py", "permission denied")
