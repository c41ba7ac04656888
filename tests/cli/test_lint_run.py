"""Before anything is printed: what was asked for, which settings hold, fixes of standard input, and exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from frostline.baseline import write_baseline
from frostline.cli.lint_documents import Outcome
from frostline.cli.lint_run import (
    Work,
    against,
    exit_code,
    lint_files,
    lint_stdin,
    listed,
    settings_for,
    stdin_name,
)
from frostline.errors import BaselineError, FrostlineError
from frostline.lint.diagnostic import LintReport
from frostline.lint.settings import Settings

WRONG = b"from torch import nn\r\nnet = nn.Linear(3, 4)\r\nfor p in net.parameters():\r\n    p.require_grad = False\r\n"
TABLE = "[tool.frostline.lint]\nselect = ['F']\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# What was asked for


def test_an_option_that_names_nothing_is_refused() -> None:
    assert listed("select", ["F101 , M2", "N"]) == ["F101", "M2", "N"]
    assert listed("select", []) == []
    with pytest.raises(FrostlineError, match=r"--select ',' names nothing\.\n  fix: leave it out"):
        listed("select", [","])


def test_standard_input_stands_alone_and_may_have_a_name() -> None:
    assert stdin_name([Path("a.py")], None) is None
    assert stdin_name([Path("-")], None) == "stdin.py"
    assert stdin_name([Path("-")], "src/a.py") == "src/a.py"
    with pytest.raises(FrostlineError, match="- is standard input, and stands alone"):
        stdin_name([Path("a.py"), Path("-")], None)
    with pytest.raises(FrostlineError, match=r"--stdin-filename a\.py: standard input is not linted"):
        stdin_name([Path("b.py")], "a.py")


def test_settings_are_those_of_the_project_of_the_first_path_or_of_a_file_or_none() -> None:
    Path("one").mkdir()
    Path("one/pyproject.toml").write_text(TABLE)
    Path("one/a.py").touch()
    Path("plain.toml").write_text("[tool.other]\n")
    one = settings_for([Path("one/a.py")], config=None, isolated=False)
    assert (one.select, one.file) == (("F",), Path.cwd() / "one/pyproject.toml")
    assert settings_for([Path()], config=None, isolated=False) == Settings()
    assert settings_for([Path("-")], config=Path("one/pyproject.toml"), isolated=False).select == ("F",)
    assert settings_for([Path("one")], config=None, isolated=True) == Settings()


@pytest.mark.parametrize(
    ("config", "isolated", "said"),
    [
        ("none.toml", False, "--config none.toml: there is no such file"),
        ("sub/pyproject.toml", False, r"it has no table \[tool\.frostline\.lint\]"),
        ("pyproject.toml", True, "--isolated and --config pyproject.toml"),
    ],
)
def test_settings_that_cannot_be_had_are_refused(config: str, isolated: bool, said: str) -> None:
    Path("sub").mkdir()
    Path("pyproject.toml").write_text(TABLE)
    Path("sub/pyproject.toml").write_text("# nothing of ours; the folder above has a table\n")
    with pytest.raises(FrostlineError, match=said):
        settings_for([Path()], config=Path(config), isolated=isolated)


# Fixes


def test_standard_input_is_mended_in_memory() -> None:
    found = lint_stdin(WRONG, "a.py", Settings(), fix=False)
    assert [each.finding.code for each in found.report.diagnostics] == ["F101"]
    assert (found.fixed, found.content) == ((), None)
    done = lint_stdin(WRONG, "a.py", Settings(), fix=True)
    assert done.content == WRONG.replace(b"require_grad", b"requires_grad")
    assert [each.finding.code for each in done.fixed] == ["F101"]
    assert done.report.diagnostics == ()
    assert "+    p.requires_grad = False\n" in done.diff
    again = lint_stdin(done.content, "a.py", Settings(), fix=True)
    assert (again.content, again.fixed, again.diff) == (done.content, (), "")


def test_what_does_not_parse_comes_back_as_it_was() -> None:
    done = lint_stdin(WRONG + b"def (", "a.py", Settings(), fix=True)
    assert (done.content, done.fixed) == (WRONG + b"def (", ())
    assert [(each.file, each.line) for each in done.report.failures] == [("a.py", 5)]


def test_files_are_written_only_where_that_is_asked_for() -> None:
    Path("a.py").write_bytes(WRONG)
    how: dict[str, Any] = {"jobs": 1, "cache": False}
    assert len(lint_files([Path("a.py")], Settings(), fix=False, write=True, **how).report.diagnostics) == 1
    dry = lint_files([Path("a.py")], Settings(), fix=True, write=False, **how)
    assert Path("a.py").read_bytes() == WRONG
    done = lint_files([Path("a.py")], Settings(), fix=True, write=True, **how)
    assert Path("a.py").read_bytes() == WRONG.replace(b"require_grad", b"requires_grad")
    assert (len(done.fixed), done.diff) == (1, dry.diff)
    assert done.report.diagnostics == ()


# Baseline and exit code


def test_a_baseline_splits_the_report(lint_samples: Any) -> None:
    work = Work(lint_samples.REPORT)
    assert against(work, None) == Outcome(lint_samples.REPORT)
    write_baseline(Path("known.json"), [lint_samples.MISSPELT.finding])
    outcome = against(work, Path("known.json"))
    assert outcome.known == (lint_samples.MISSPELT.finding,)
    assert [each.finding.code for each in outcome.new.diagnostics] == ["H601", "F106"]
    with pytest.raises(BaselineError):
        against(work, Path("none.json"))


def test_the_exit_code_is_for_new_findings_then_for_failures(lint_samples: Any) -> None:
    found, broken = (lint_samples.EVAL,), (lint_samples.BROKEN,)
    assert exit_code(Outcome(LintReport())) == 0
    assert exit_code(Outcome(LintReport(found))) == 1
    assert exit_code(Outcome(LintReport(found, broken))) == 1
    assert exit_code(Outcome(LintReport((), broken))) == 2
    assert exit_code(Outcome(LintReport(found), known=(lint_samples.EVAL.finding,))) == 0
    assert exit_code(Outcome(LintReport(found)), exit_zero=True) == 0
    assert exit_code(Outcome(LintReport(found, broken)), exit_zero=True) == 2
    assert exit_code(Outcome(LintReport(), fixed=found)) == 0
    assert exit_code(Outcome(LintReport(), fixed=found), exit_non_zero_on_fix=True) == 1
