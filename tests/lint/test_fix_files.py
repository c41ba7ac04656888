"""Mending of files: all that is wanted, nothing else, and nothing twice."""

from __future__ import annotations

import ast
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frostline.findings import Safety
from frostline.lint import engine, fix_files, run
from frostline.lint.diagnostic import Failure
from frostline.lint.file_view import FileView
from frostline.lint.fix_files import FixReport, fix_paths, fix_source
from frostline.lint.rule import LintRule, Violation
from frostline.lint.settings import Settings

TYPO = "from torch import nn\nnet = nn.Linear(2, 2)\nnet.weight.require_grad = False  # frozen\n"
RIGHT = TYPO.replace("require_grad", "requires_grad")
HERE = [Path()]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fix(*, unsafe: bool = False, write: bool = True, jobs: int | None = None) -> FixReport:
    return fix_paths(HERE, Settings(), unsafe=unsafe, write=write, jobs=jobs, cache=False)


def made_of(check: Callable[[FileView], Iterator[Violation]]) -> LintRule:
    """A rule that exists only here, under a code of the catalogue."""
    words = dict.fromkeys(("what", "why", "example", "instead", "remedy", "how_safe", "false_alarms", "source"), "")
    return LintRule(code="F101", safety=Safety.SAFE, triggers=("",), check=check, **words)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[FileView], Iterator[Violation]]], None]:
    def only_this(check: Callable[[FileView], Iterator[Violation]]) -> None:
        rules = {"F101": made_of(check)}
        monkeypatch.setattr(engine, "all_rules", lambda: rules)
        monkeypatch.setattr(run, "all_rules", lambda: rules)

    return only_this


def renaming(**names: str) -> Callable[[FileView], Iterator[Violation]]:
    """Every name is given another one."""

    def check(view: FileView) -> Iterator[Violation]:
        for node in view.nodes(ast.Name):
            if node.id in names:
                edits = (view.replaced(node, names[node.id]),)
                yield Violation(node, node.id, edits=edits, safety=Safety.SAFE, title="rename")

    return check


def test_a_file_is_mended_and_the_rest_of_it_stays():
    Path("a.py").write_text(TYPO)
    done = fix()
    assert Path("a.py").read_text() == RIGHT
    assert [(each.finding.file, each.finding.line, each.finding.code) for each in done.applied] == [("a.py", 3, "F101")]
    assert (done.report.diagnostics, done.failures) == ((), ())
    assert "-net.weight.require_grad = False  # frozen\n+net.weight.requires_grad = False  # frozen\n" in done.diff


def test_a_second_run_changes_nothing_not_even_the_time():
    Path("a.py").write_text(TYPO)
    Path("clean.py").write_text("import torch\n")
    os.utime("clean.py", ns=(10**9, 10**9))
    fix()
    os.utime("a.py", ns=(10**9, 10**9))
    done = fix()
    assert (done.applied, done.diff, dict(done.sources)) == ((), "", {})
    assert {path.stat().st_mtime_ns for path in Path().glob("*.py")} == {10**9}


def test_a_dry_run_writes_nothing_and_tells_what_would_be():
    Path("a.py").write_text(TYPO)
    os.utime("a.py", ns=(10**9, 10**9))
    dry = fix(write=False)
    assert (Path("a.py").read_text(), Path("a.py").stat().st_mtime_ns) == (TYPO, 10**9)
    done = fix()
    assert (dry.diff, dry.applied, dry.report.to_dict()) == (done.diff, done.applied, done.report.to_dict())


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"", TYPO.encode().replace(b"\n", b"\r\n")),
        (b"", TYPO.encode().replace(b"\n", b"\r")),
        (b"\xef\xbb\xbf", TYPO.encode()),
        (b"\xef\xbb\xbf", TYPO.encode().replace(b"\n", b"\r\n")),
        (b"# -*- coding: latin-1 -*-\n# caf\xe9\n", TYPO.encode()),
        ("# ünï 漢字 😀\n".encode(), TYPO.encode()),
        (b"", TYPO.encode().rstrip(b"\n")),
        (b"\x0c\n", b"if 1:\n\tpass\n" + TYPO.encode()),
    ],
    ids=["windows", "old mac", "mark", "mark and windows", "latin-1", "letters", "no end", "form feed and tab"],
)
def test_line_ends_marks_and_encodings_are_kept(head: bytes, body: bytes):
    Path("a.py").write_bytes(head + body)
    done = fix()
    assert len(done.applied) == 1
    assert Path("a.py").read_bytes() == (head + body).replace(b"require_grad", b"requires_grad")


def test_a_notebook_is_mended_in_its_cell():
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["require_grad\n"]},
        {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": 3, "source": ["%time x = 1\n"]},
        {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": 4, "source": TYPO.splitlines(True)},
    ]
    text = json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)
    Path("a.ipynb").write_text(text)
    done = fix()
    assert [(each.cell, each.finding.line) for each in done.applied] == [(3, 3)]
    assert Path("a.ipynb").read_text() == text.replace("net.weight.require_grad", "net.weight.requires_grad")
    assert fix().applied == ()


def test_a_fix_makes_room_for_another(only):
    only(renaming(one="two", two="three", three="four"))
    Path("a.py").write_text("one + two\n")
    done = fix()
    assert Path("a.py").read_text() == "four + four\n"
    assert [each.finding.message for each in done.applied] == ["one", "two", "two", "three", "three"]
    assert (done.report.diagnostics, done.failures) == ((), ())


def test_fixes_that_chase_their_own_tail_come_to_an_end(only):
    only(renaming(one="two", two="one"))
    Path("a.py").write_text("one\n")
    done = fix()
    assert len(done.applied) == fix_files._ROUNDS
    assert Path("a.py").read_text() == "one\n"


def test_of_two_fixes_that_touch_the_second_waits_for_the_next_round(only):
    def check(view: FileView) -> Iterator[Violation]:
        for node in view.nodes(ast.Call):
            for name in ("a", "b"):
                if not any(each.arg == name for each in node.keywords):
                    yield Violation(
                        node if name == "a" else node.func,
                        name,
                        edits=(view.argument_added(node, f"{name}=1"),),
                        safety=Safety.SAFE,
                        title="add",
                    )

    only(check)
    Path("a.py").write_text("f()\n")
    fix()
    assert Path("a.py").read_text() in {"f(a=1, b=1)\n", "f(b=1, a=1)\n"}


def test_a_fix_that_breaks_a_file_is_taken_back_and_others_go_on(only):
    only(renaming(bad="=(", good="better"))
    Path("a.py").write_text("x = 1\nbad\n")
    Path("b.py").write_text("good\n")
    done = fix()
    assert (Path("a.py").read_text(), Path("b.py").read_text()) == ("x = 1\nbad\n", "better\n")
    assert done.failures == (Failure("a.py", "a fix would make it unparsable, and was not made", 2),)
    assert [each.finding.file for each in done.applied] == ["b.py"]
    assert [each.finding.message for each in done.report.diagnostics] == ["bad"]
    assert "a.py" not in done.diff


def test_a_fix_that_breaks_a_file_in_a_later_round_leaves_the_rounds_before(only):
    only(renaming(one="two", two="=("))
    Path("a.py").write_text("one\n")
    done = fix()
    assert Path("a.py").read_text() == "two\n"
    assert ([each.finding.message for each in done.applied], len(done.failures)) == (["one"], 1)
    assert [each.finding.message for each in done.report.diagnostics] == ["two"]


def test_a_letter_that_the_encoding_lacks_is_named_and_others_go_on(only):
    only(renaming(one="π", two="three"))
    Path("a.py").write_bytes(b"# -*- coding: latin-1 -*-\n# \xe9\none\n")
    Path("b.py").write_text("two\n")
    done = fix()
    assert Path("a.py").read_bytes().endswith(b"\none\n")
    assert Path("b.py").read_text() == "three\n"
    (failure,) = done.failures
    assert (failure.file, "'π' is no character of" in failure.message) == ("a.py", True)


def test_unsafe_fixes_are_made_when_they_are_asked_for(only):
    def check(view: FileView) -> Iterator[Violation]:
        for violation in renaming(one="two")(view):
            yield Violation(
                violation.node, "one", edits=violation.edits, safety=Safety.UNSAFE, title="rename", remedy="two"
            )

    only(check)
    Path("a.py").write_text("one\n")
    assert (fix().applied, Path("a.py").read_text()) == ((), "one\n")
    assert (len(fix(unsafe=True).applied), Path("a.py").read_text()) == (1, "two\n")


def test_a_read_only_file_is_named_once_and_the_others_are_mended():
    Path("a.py").write_text(TYPO)
    Path("a.py").chmod(0o444)
    Path("b.py").write_text(TYPO)
    done = fix()
    assert (Path("a.py").read_text(), Path("b.py").read_text()) == (TYPO, RIGHT)
    assert done.failures == (Failure("a.py", "cannot be written: it is read-only"),)
    assert [each.finding.file for each in done.applied] == ["b.py"]
    assert [each.finding.file for each in done.report.diagnostics] == ["a.py"]
    assert "a.py" not in done.diff
    assert stat.S_IMODE(Path("a.py").stat().st_mode) == 0o444


def test_permissions_and_links_are_kept():
    Path("real").mkdir()
    Path("real/a.py").write_text(TYPO)
    Path("real/a.py").chmod(0o750)
    Path("link.py").symlink_to("real/a.py")
    fix_paths([Path("link.py")], Settings(), unsafe=False, write=True, cache=False)
    assert Path("link.py").is_symlink()
    assert Path("real/a.py").read_text() == RIGHT
    assert stat.S_IMODE(Path("real/a.py").stat().st_mode) == 0o750


def test_files_that_do_not_parse_are_told_and_stay():
    Path("a.py").write_text(TYPO + "def (\n")
    Path("b.py").write_text(TYPO)
    done = fix()
    assert [(each.file, each.line) for each in done.report.failures] == [("a.py", 4)]
    assert (Path("a.py").read_text(), Path("b.py").read_text()) == (TYPO + "def (\n", RIGHT)


def test_what_a_fix_does_in_one_file_matters_to_the_others(only):
    """A finding that the mended file no longer causes elsewhere is not told any more."""

    def check(view: FileView) -> Iterator[Violation]:
        for node in view.nodes(ast.Call):
            found = view.walk.find(view.name(node.func))
            if found is not None and found[0] is not view.walk and found[1].node.body[0].value.value == 1:
                yield Violation(node, "gives 1")
        for node in view.nodes(ast.Return):
            if isinstance(node.value, ast.Constant) and node.value.value == 1:
                yield Violation(node, "1", edits=(view.replaced(node.value, "2"),), safety=Safety.SAFE, title="2")

    only(check)
    Path("helpers.py").write_text("def one():\n    return 1\n")
    Path("main.py").write_text("from helpers import one\none()\n")
    before = run.lint_paths(HERE, Settings(), cache=False)
    assert [each.finding.message for each in before.diagnostics] == ["1", "gives 1"]
    assert fix().report.diagnostics == ()


def test_the_same_with_more_processes_and_with_a_cache():
    for i in range(12):
        Path(f"f{i}.py").write_text(TYPO)
    one, three = fix(write=False), fix(write=False, jobs=3)
    kept = fix_paths(HERE, Settings(), unsafe=False, write=False)
    for other in (three, kept):
        assert (other.diff, other.applied, other.report.to_dict()) == (one.diff, one.applied, one.report.to_dict())
    assert len(one.applied) == 12
    assert run.lint_paths(HERE, Settings()).diagnostics  # what would be is not taken for what is


def test_one_content_is_mended_in_memory():
    data = TYPO.encode().replace(b"\n", b"\r\n")
    done = fix_source(data, "a.py", Settings(), unsafe=False)
    assert done.sources["a.py"].to_bytes() == RIGHT.encode().replace(b"\n", b"\r\n")
    assert (len(done.applied), done.report.diagnostics, list(Path().iterdir())) == (1, (), [])
    again = fix_source(done.sources["a.py"].to_bytes(), "a.py", Settings(), unsafe=False)
    assert (dict(again.sources), again.applied, again.diff) == ({}, (), "")


def test_one_content_that_does_not_parse():
    done = fix_source(b"def (", "a.py", Settings(), unsafe=False)
    assert ([each.line for each in done.report.failures], dict(done.sources)) == ([1], {})
