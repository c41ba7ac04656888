"""The text that findings point into: files, cells, standard input, and what is gone meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frostline.cli.lint_sources import Sources
from frostline.findings import Safety
from frostline.lint.diagnostic import Edit, Fix


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_file_has_its_lines_whatever_ends_them() -> None:
    Path("a.py").write_bytes(b"one\r\n\ttwo\n\x0cthree\xe2\x80\xa8four")
    assert Sources().lines("a.py", 0) == ["one", "\ttwo", "\x0cthree\u2028four"]
    assert Sources().lines("a.py", 1) == []


def test_a_notebook_has_the_lines_of_each_cell_as_they_were_written(lint_samples: Any) -> None:
    lint_samples.write_notebook(Path("a.ipynb"), "%time f()\nx = 1", "y = 2")
    sources = Sources()
    assert sources.lines("a.ipynb", 1) == ["%time f()", "x = 1"]
    assert sources.lines("a.ipynb", 2) == ["y = 2"]
    assert sources.lines("a.ipynb", 3) == []


def test_standard_input_is_no_file() -> None:
    Path("stdin.py").write_text("of the disk")
    assert Sources({"stdin.py": b"given"}).lines("stdin.py", 0) == ["given"]


def test_what_cannot_be_read_any_more_has_no_lines(lint_samples: Any) -> None:
    assert Sources().lines("train.py", 0) == []
    assert Sources().changes(lint_samples.MISSPELT) == []


def test_a_file_is_read_once() -> None:
    Path("a.py").write_text("one\n")
    sources = Sources()
    assert sources.lines("a.py", 0) == ["one"]
    Path("a.py").write_text("two\n")
    assert sources.lines("a.py", 0) == ["one"]


def test_a_fix_changes_the_lines_that_it_touches(lint_samples: Any) -> None:
    Path("train.py").write_text(lint_samples.TRAIN)
    sources = Sources()
    assert sources.changes(lint_samples.MISSPELT) == [(["    p.require_grad = False"], ["    p.requires_grad = False"])]
    assert sources.changes(lint_samples.LISTED) == [
        (["layers = ["], ["layers = nn.ModuleList(["]),
        (["]"], ["])"]),
    ]
    assert sources.changes(lint_samples.EVAL) == [], "it has no fix"


def test_lines_that_come_and_go_stand_alone(lint_samples: Any) -> None:
    Path("train.py").write_text(lint_samples.TRAIN)
    edits = Edit(87, 87, "\nfreeze(net)"), Edit(88, 99, "")
    inserted, removed = (replace(lint_samples.EVAL, fix=Fix((edit,), Safety.SAFE, "")) for edit in edits)
    assert Sources().changes(inserted) == [([], ["freeze(net)"])]
    assert Sources().changes(removed) == [(["net.eval()"], [])]


def test_an_edit_beyond_the_file_is_not_shown(lint_samples: Any) -> None:
    Path("train.py").write_text("short\n")
    assert Sources().changes(lint_samples.MISSPELT) == []
