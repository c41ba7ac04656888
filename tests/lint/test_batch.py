"""Files that one process lints, one after the other."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from frostline.lint import batch
from frostline.lint.batch import Batch, Worker
from frostline.lint.cache import digest

TYPO = "from torch import nn\nnet = nn.Linear(2, 2)\nnet.weight.require_grad = False\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.py").write_text(TYPO)
    Path("b.py").write_text("import a\nfrom a import net\n" + TYPO)


def test_results_come_in_the_order_that_was_asked_for():
    found = Batch({"a.py": "a.py", "b.py": "b.py"}).lint(["b.py", "a.py"])
    assert [(name, [each.finding.line for each in result.diagnostics]) for name, result in found] == [
        ("b.py", [5]),
        ("a.py", [3]),
    ]
    assert [(result.digest, result.lines) for _, result in found] == [
        (digest(Path("b.py").read_bytes()), 5),
        (digest(TYPO.encode()), 3),
    ]


def test_a_file_has_the_name_that_it_is_printed_under():
    (found,) = Batch({"shown.py": str(Path("a.py").absolute())}).lint(["shown.py"])
    assert [each.finding.file for each in found[1].diagnostics] == ["shown.py"]


def test_contents_are_taken_instead_of_files():
    (found,) = Batch({"a.py": "a.py"}, {"a.py": b"x = ("}).lint(["a.py"])
    assert found[1].failure is not None
    assert (found[1].failure.line, found[1].digest) == (1, digest(b"x = ("))


def test_a_file_that_is_gone_is_a_failure_without_a_digest():
    (found,) = Batch({"c.py": "c.py"}).lint(["c.py"])
    assert found[1].failure is not None
    assert (found[1].failure.message, found[1].digest) == ("no such file", "")


@pytest.mark.parametrize(("text", "lines"), [("", 0), ("x", 1), ("x\n", 1), ("x\ny", 2), ("\n\n", 2)])
def test_lines_are_counted(text: str, lines: int):
    (found,) = Batch({"a.py": "a.py"}, {"a.py": text.encode()}).lint(["a.py"])
    assert found[1].lines == lines


def test_no_garbage_is_collected_meanwhile_and_it_is_again_afterwards(monkeypatch: pytest.MonkeyPatch):
    seen: list[bool] = []
    lint = batch.lint
    monkeypatch.setattr(batch, "lint", lambda *given: (seen.append(gc.isenabled()), lint(*given))[1])
    Batch({"a.py": "a.py"}).lint(["a.py"])
    assert (seen, gc.isenabled()) == ([False], True)
    monkeypatch.setattr(batch, "lint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Batch({"a.py": "a.py"}).lint(["a.py"])
    assert gc.isenabled()


def test_little_is_kept_however_many_files_there_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch, "_LINES_BETWEEN_COLLECTIONS", 1)
    one = Batch({"a.py": "a.py", "b.py": "b.py"})
    assert [len(result.diagnostics) for _, result in one.lint(["a.py", "b.py", "a.py"])] == [1, 1, 1]


def test_a_process_begins_once_and_works_often():
    Worker.start({"a.py": "a.py"}, {})
    assert [len(result.diagnostics) for _, result in Worker.work(["a.py"]) + Worker.work(["a.py"])] == [1, 1]
