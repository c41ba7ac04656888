"""The plain reader understands what typer does, takes nothing that typer would refuse, and leaves help to it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import pytest

from frostline.cli.commands import real_command
from frostline.cli.lint_command import OutputFormat
from frostline.cli.lint_options import FORMATS, LintOptions, read_plainly
from frostline.lint.settings import OUTPUT_FORMATS

PLAIN = [
    [],
    ["train.py"],
    ["train.py", "notebooks"],
    ["-"],
    ["-", "--stdin-filename", "a.py"],
    ["--stdin-filename=a.py", "-"],
    ["--select", "F1,M2", "src", "--select=N"],
    ["--ignore", "F101", "--extend-select", "O"],
    ["--exclude", "a,b", "--extend-exclude=c"],
    ["--fix", "--unsafe-fixes"],
    ["--no-unsafe-fixes", "--diff"],
    ["--unsafe-fixes", "--no-unsafe-fixes"],
    ["--json", "--statistics"],
    ["--output-format", "github"],
    ["--output-format=concise", "--output-format=full"],
    ["--baseline", "a.json", "--write-baseline=b.json"],
    ["--exit-zero", "--exit-non-zero-on-fix"],
    ["--no-cache", "--cache-dir", "cache"],
    ["--jobs", "4"],
    ["--config", "pyproject.toml", "--isolated"],
    ["--show-files", "a=b.py"],
    ["--select", ""],
    ["--baseline="],
]
NOT_PLAIN = [
    ["--help"],
    ["-h"],
    ["train.py", "--help"],
    ["--selekt", "F1"],
    ["--select"],
    ["--select", "--fix"],
    ["--fix=yes"],
    ["--output-format", "xml"],
    ["--jobs", "0"],
    ["--jobs", "-1"],
    ["--jobs", "many"],
    ["--jobs", "²"],
    ["--", "-odd-name.py"],
    ["--sel", "F1"],
    ["-x"],
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[LintOptions]:
    """What typer asks the linter for."""
    found: list[LintOptions] = []

    def note(options: LintOptions) -> int:
        found.append(options)
        return 0

    monkeypatch.setattr("frostline.cli.lint_job.run_lint", note)
    return found


@pytest.mark.parametrize("arguments", PLAIN, ids=" ".join)
def test_what_is_read_plainly_is_what_typer_reads(command: Any, asked: list[LintOptions], arguments: list[str]) -> None:
    assert command("lint", *arguments).code == 0
    assert asked == [read_plainly(arguments)]


@pytest.mark.parametrize("arguments", NOT_PLAIN, ids=" ".join)
def test_help_and_what_is_unusual_or_wrong_is_left_to_typer(arguments: list[str]) -> None:
    assert read_plainly(arguments) is None


def test_every_option_can_be_read_plainly() -> None:
    parameters = real_command("lint").params
    assert [parameter.name for parameter in parameters] == [each.name for each in fields(LintOptions)]
    used = {word.partition("=")[0] for arguments in PLAIN for word in arguments if word.startswith("--")}
    opts = {option for each in parameters for option in (*each.opts, *each.secondary_opts) if option.startswith("--")}
    assert opts == used


def test_the_formats_are_those_of_the_settings() -> None:
    assert FORMATS == OUTPUT_FORMATS == get_args(OutputFormat)
