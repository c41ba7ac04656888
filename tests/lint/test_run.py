"""Linting of files and folders: the same report, however it comes about."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from frostline.errors import LintSettingsError
from frostline.lint import run
from frostline.lint.diagnostic import LintReport
from frostline.lint.run import lint_paths, lint_source
from frostline.lint.settings import Settings

TYPO = "from torch import nn\nnet = nn.Linear(2, 2)\nnet.weight.require_grad = False\n"
HELPERS = "def thaw(m):\n    for p in m.parameters():\n        p.requires_grad = True\n"
MAIN = """\
from torch.nn.parallel import DistributedDataParallel as DDP
from helpers import thaw
def main(net, loader):
    net.body.requires_grad_(False)
    model = DDP(net)
    for epoch in range(9):
        if epoch > 3:
            thaw(model.module.body)
        for x in loader:
            model(x).sum().backward()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(files: dict[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def told(report: LintReport) -> list[tuple[str, int, str]]:
    return [(each.finding.file, each.finding.line, each.finding.code) for each in report.diagnostics]


def test_what_is_found_is_in_the_order_of_files_and_lines():
    write({"b.py": TYPO + TYPO, "a.py": TYPO, "sub/c.py": TYPO, "clean.py": "x = 1"})
    report = lint_paths([Path("sub"), Path()], Settings(), cache=False)
    assert told(report) == [("a.py", 3, "F101"), ("b.py", 3, "F101"), ("b.py", 6, "F101"), ("sub/c.py", 3, "F101")]
    assert (report.files, report.lines, report.cached, report.failures) == (4, 13, 0, ())


def test_the_same_report_with_one_two_and_three_processes_and_with_a_cache():
    files = {f"part{i}/train{j}.py": MAIN if j % 2 else TYPO for i in range(4) for j in range(6)}
    files |= {f"part{i}/helpers.py": HELPERS if i % 2 else "def thaw(m):\n    print(m)\n" for i in range(4)}
    files |= {"broken.py": "def (", "latin.py": "# -*- coding: latin-1 -*-\n" + TYPO}
    write(files)
    reports = [lint_paths([Path()], Settings(), jobs=jobs, cache=False) for jobs in (1, 2, 3, 99, None)]
    reports += [lint_paths([Path()], Settings(), jobs=jobs) for jobs in (3, 1)]
    texts = {json.dumps(report.to_dict()).encode() for report in reports}
    assert len(texts) == 1
    assert len(told(reports[0])) == 4 * 3 + 2 * 3 + 1
    assert [report.cached for report in reports[-2:]] == [0, 30]


def test_a_helper_in_another_piece_of_work_is_found():
    """The file that is imported from is linted by another process."""
    write({"a_main.py": MAIN, "helpers.py": HELPERS, **{f"m{i}.py": TYPO for i in range(20)}})
    report = lint_paths([Path()], Settings(), jobs=3, cache=False)
    assert ("a_main.py", 8, "D801") in told(report)


def test_codes_are_left_out_by_settings():
    write({"a.py": TYPO, "tests/b.py": TYPO})
    assert told(lint_paths([Path()], Settings(select=("M",)), cache=False)) == []
    assert told(lint_paths([Path()], Settings(ignore=("F1",)), cache=False)) == []
    here = Settings(per_file_ignores={"tests/*": ("F101",)})
    assert told(lint_paths([Path()], here, cache=False)) == [("a.py", 3, "F101")]


def test_an_unknown_code_is_refused_before_anything_is_read():
    with pytest.raises(LintSettingsError, match="no rule of the linter is called 'F999'"):
        lint_paths([Path()], Settings(select=("F999",)))
    with pytest.raises(LintSettingsError, match="no rule of the linter is called 'Q'"):
        lint_source(b"", "a.py", Settings(ignore=("Q",)))


def test_a_path_that_does_not_exist_is_refused():
    with pytest.raises(LintSettingsError, match="there is no file or folder 'nowhere'"):
        lint_paths([Path("nowhere")], Settings())


def test_contents_take_the_place_of_what_is_on_the_disk():
    write({"main.py": MAIN, "helpers.py": "def thaw(m):\n    print(m)\n"})
    assert told(lint_paths([Path()], Settings())) == []
    report = lint_paths([Path()], Settings(), contents={"helpers.py": HELPERS.encode()})
    assert told(report) == [("main.py", 8, "D801")]
    assert told(lint_paths([Path()], Settings())) == []
    both = {"main.py": TYPO.encode(), "helpers.py": b"def ("}
    report = lint_paths([Path()], Settings(), contents=both, jobs=2, cache=False)
    assert (told(report), [each.file for each in report.failures]) == ([("main.py", 3, "F101")], ["helpers.py"])


def test_one_content_is_linted_alone():
    write({"helpers.py": HELPERS})
    assert told(lint_source(TYPO.encode(), "any.py", Settings())) == [("any.py", 3, "F101")]
    assert told(lint_source(MAIN.encode(), "main.py", Settings())) == []
    failed = lint_source(b"x = (", "any.py", Settings())
    assert [(each.file, each.message, each.line) for each in failed.failures] == [("any.py", "'(' was never closed", 1)]
    assert [each.message for each in lint_source(b"\xff", "any.py", Settings()).failures] == ["not UTF-8"]


def test_pieces_of_work_keep_the_order_and_all_files():
    names = [f"{i}.py" for i in range(50)]
    sizes = {name: 10 * (i % 7) for i, name in enumerate(names)}
    pieces = run._pieces(names, sizes, 100)
    assert [name for piece in pieces for name in piece] == names
    assert all(sum(sizes[name] for name in piece[:-1]) < 100 for piece in pieces)
    assert run._pieces([], {}, 100) == [[]]


def test_an_empty_folder_is_clean():
    Path("empty").mkdir()
    report = lint_paths([Path("empty")], Settings())
    assert (report.files, report.diagnostics, report.failures) == (0, (), ())


def test_there_is_a_core():
    assert 1 <= run._cores() <= (os.cpu_count() or 1)
