"""Fixes that go together, how they look, and how they reach the file."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

import frostline.durable
from frostline.errors import CannotWrite, StorageFull
from frostline.findings import Finding, Safety, Severity
from frostline.lint.diagnostic import Diagnostic, Edit, Fix
from frostline.lint.fixes import apply_fixes, unified_diff, write_source
from frostline.lint.source import Source, read_source, source_from_bytes


def found(*edits: Edit, safety: Safety = Safety.SAFE, where: str = "") -> Diagnostic:
    finding = Finding("F101", Severity.ERROR, "message", where)
    return Diagnostic(finding, 1, 1, Fix(edits, safety, "Rename") if edits else None)


def applied(text: str, *diagnostics: Diagnostic, unsafe: bool = False) -> tuple[str, list[Diagnostic]]:
    source, made = apply_fixes(Source("a.py", text), diagnostics, unsafe=unsafe)
    return source.text, made


def read(data: bytes, name: str = "a.py") -> Source:
    source = source_from_bytes(data, name)
    assert isinstance(source, Source)
    return source


def notebook(*cells: str) -> Source:
    listed = [{"cell_type": "code", "source": cell} for cell in cells]
    return read(json.dumps({"nbformat": 4, "cells": listed}).encode(), "a.ipynb")


def test_safe_fixes_are_made_and_unsafe_ones_when_asked() -> None:
    safe, unsafe = found(Edit(0, 1, "A")), found(Edit(2, 3, "B"), safety=Safety.UNSAFE)
    manual, none = found(Edit(4, 5, "C"), safety=Safety.MANUAL), found()
    assert applied("a b c", safe, unsafe, manual, none) == ("A b c", [safe])
    assert applied("a b c", safe, unsafe, manual, none, unsafe=True) == ("A B c", [safe, unsafe])


def test_without_fixes_the_source_is_the_same() -> None:
    source = Source("a.py", "a")
    assert apply_fixes(source, [found()], unsafe=True) == (source, [])


def test_the_first_of_two_that_overlap_is_made() -> None:
    later, earlier = found(Edit(1, 4, "y")), found(Edit(0, 2, "x"), Edit(5, 6, "z"))
    assert applied("abcdef", later, earlier) == ("xcdez", [earlier])


@pytest.mark.parametrize("other", [Edit(1, 1, "z"), Edit(2, 2, "z"), Edit(3, 3, "z")])
def test_an_insertion_at_the_edge_of_another_edit_waits(other: Edit) -> None:
    first = found(Edit(0, 0, "-"), Edit(1, 3, "x"))
    assert applied("abcd", first, found(other)) == ("-axd", [first])


def test_neighbours_that_only_meet_are_both_made() -> None:
    assert applied("abcd", found(Edit(0, 2, "x")), found(Edit(2, 4, "y")))[0] == "xy"


def test_the_same_line_is_inserted_once() -> None:
    one, other = (found(Edit(0, 0, "import torch\n"), Edit(at, at + 1, "x")) for at in (0, 2))
    assert applied("a b", one, other) == ("import torch\nx x", [one, other])


def test_the_same_bracket_is_not_one_bracket() -> None:
    one, other = (found(Edit(0, 0, "("), Edit(at, at, ")")) for at in (1, 3))
    assert applied("a.b", one, other) == ("(a).b", [one])


def test_the_same_fix_twice_is_made_once() -> None:
    one, other = found(Edit(1, 1, "("), Edit(2, 2, ")"), where="a"), found(Edit(1, 1, "("), Edit(2, 2, ")"), where="b")
    assert applied("abc", one, other) == ("a(b)c", [one, other])


def test_a_fix_that_reaches_into_a_magic_is_left() -> None:
    source = notebook("%time\na", "b")
    assert source.text == "     \na\nb"
    fixed, made = apply_fixes(source, [found(Edit(0, 7, "x")), good := found(Edit(8, 9, "c"))], unsafe=False)
    assert (fixed.text, made) == ("     \na\nc", [good])


def test_the_difference_is_one_of_diff() -> None:
    before = Source("src/a.py", "".join(f"{i}\n" for i in range(9)) + "end")
    after = before.apply([Edit(8, 9, "four"), Edit(18, 21, "END")])
    assert unified_diff(before, after) == (
        "--- src/a.py\n+++ src/a.py\n@@ -2,9 +2,9 @@\n 1\n 2\n 3\n-4\n+four\n 5\n 6\n 7\n 8\n"
        "-end\n\\ No newline at end of file\n+END\n\\ No newline at end of file\n"
    )
    assert unified_diff(before, before) == ""


def test_windows_line_ends_are_kept_but_not_shown() -> None:
    before = read(b"\xef\xbb\xbfa\r\nb\r\n")
    after = before.apply([Edit(0, 1, "A"), before.line_below(2, "c")])
    assert after.to_bytes() == b"\xef\xbb\xbfA\r\nb\r\nc\r\n"
    assert unified_diff(before, after) == "--- a.py\n+++ a.py\n@@ -1,2 +1,3 @@\n-a\n+A\n b\n+c\n"


def test_cells_have_differences_of_their_own() -> None:
    before = notebook("%time\na\n", "b", "c\n")
    after = before.apply([Edit(6, 7, "A"), Edit(11, 12, "C")])
    assert unified_diff(before, after) == (
        "--- a.ipynb:cell 1\n+++ a.ipynb:cell 1\n@@ -1,2 +1,2 @@\n %time\n-a\n+A\n"
        "--- a.ipynb:cell 3\n+++ a.ipynb:cell 3\n@@ -1 +1 @@\n-c\n+C\n"
    )


@pytest.mark.parametrize("mode", [0o755, 0o600, 0o664])
def test_a_file_is_written_with_the_permissions_it_had(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"# coding: latin-1\r\n'\xe9'\r\n")
    path.chmod(mode)
    source = read_source(path, "a.py")
    assert isinstance(source, Source)
    write_source(path, source.apply([Edit(19, 22, "'ä'")]))
    assert path.read_bytes() == b"# coding: latin-1\r\n'\xe4'\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["a.py"]


def test_at_no_time_may_anybody_read_what_only_its_owner_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"a")
    path.chmod(0o600)
    modes: list[int] = []

    def look(handle: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))

    monkeypatch.setattr(frostline.durable.os, "fsync", look)
    before = os.umask(0)
    try:
        write_source(path, Source("a.py", "b"))
        assert modes[0] == 0o600
        frostline.durable.replace_file(path, b"c")  # the naive way makes it as any new file, before it is changed
    finally:
        os.umask(before)
    assert 0o666 in modes


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    file, link = tmp_path / "there" / "a.py", tmp_path / "link.py"
    file.write_bytes(b"a")
    link.symlink_to(Path("there") / "a.py")
    write_source(link, Source("link.py", "b"))
    assert (file.read_bytes(), link.is_symlink(), link.read_bytes()) == (b"b", True, b"b")


def test_a_read_only_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"a")
    path.chmod(0o444)
    with pytest.raises(CannotWrite, match=r"a\.py cannot be written: it is read-only\n  fix: chmod u\+w"):
        write_source(path, Source("a.py", "b"))
    assert path.read_bytes() == b"a"
    frostline.durable.replace_file(path, b"c")  # the naive way writes it all the same
    assert path.read_bytes() == b"c"


def test_a_file_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite, match=r"a\.py cannot be written: No such file"):
        write_source(tmp_path / "a.py", Source("a.py", "b"))
    assert os.listdir(tmp_path) == []


def test_a_character_that_the_encoding_lacks(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"a")
    with pytest.raises(CannotWrite, match="'漢' is no character of iso8859-1"):
        write_source(tmp_path / "a.py", Source("a.py", "漢", "iso8859-1"))
    assert (tmp_path / "a.py").read_bytes() == b"a"


def test_a_full_disk_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "a.py").write_bytes(b"a")
    monkeypatch.setattr(frostline.durable.os, "fsync", full)
    with pytest.raises(StorageFull, match=r"a\.py could not be written"):
        write_source(tmp_path / "a.py", Source("a.py", "b"))
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == {"a.py": b"a"}
