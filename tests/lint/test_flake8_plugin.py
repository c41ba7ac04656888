"""flake8 itself, with the plugin: codes, places, selection, and one lint for all families."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from frostline.findings import CATALOGUE
from frostline.lint import flake8_plugin
from frostline.lint.diagnostic import LintReport
from frostline.lint.flake8_plugin import Family, Freezing
from frostline.lint.run import lint_source
from frostline.lint.settings import Settings

SCRIPT = """\
from torch import nn

net = nn.Linear(3, 4)
for p in net.parameters():
    p.require_grad = False
"""


def flake8(folder: Path, *arguments: str, stdin: str | None = None) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-m", "flake8", "--isolated", "-j1", *arguments],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    # Other plugins that are installed have their say too.
    ours = tuple(each.beginning for each in Family.__subclasses__())
    return [line for line in done.stdout.splitlines() if line.split(": ", 1)[1].startswith(ours)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def test_flake8_prints_what_the_linter_finds_in_its_place(folder: Path) -> None:
    (found,) = [each.finding for each in lint_source(SCRIPT.encode(), "train.py", Settings()).diagnostics]
    assert flake8(folder, "train.py") == [f"train.py:{found.line}:{found.column}: {found.code} {found.message}"]
    assert (found.code, found.line, found.column) == ("F101", 5, 5)


def test_flake8_selects_and_ignores_by_code(folder: Path) -> None:
    assert len(flake8(folder, "--select", "F1")) == 1
    assert flake8(folder, "--extend-ignore", "F101") == []
    assert flake8(folder, "--select", "E,W,M2") == []
    (folder / "train.py").write_text(SCRIPT.replace("= False", "= False  # noqa: F101"))
    assert flake8(folder) == []


def test_standard_input_and_other_encodings_keep_their_columns(folder: Path) -> None:
    script = SCRIPT.replace("p.require_grad", "print('öäü'); p.require_grad")
    (folder / "train.py").write_bytes(f"# coding: latin-1\n{script}".encode("latin-1"))
    at = script.splitlines()[4].index("p.require_grad") + 1
    places = [line.split(": ")[0] for line in flake8(folder, "--select", "F1", "train.py")]
    assert places == [f"train.py:6:{at}"]
    places = [line.split(": ")[0] for line in flake8(folder, "--select", "F1", "-", stdin=SCRIPT)]
    assert places == ["stdin:5:5"]


def test_every_code_has_a_family_and_no_family_another_plugins_codes() -> None:
    families = Family.__subclasses__()
    for code in CATALOGUE:
        assert sum(code.startswith(each.beginning) for each in families) == 1, code
    registered = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for each in families:
        assert f'\n{each.beginning} = "frostline.lint.flake8_plugin:{each.__name__}"\n' in registered


def test_a_file_is_linted_once_for_all_families(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def count(data: bytes, name: str, settings: Settings) -> LintReport:
        asked.append(data)
        return lint_source(data, name, settings)

    monkeypatch.setattr("frostline.lint.run.lint_source", count)
    flake8_plugin._report.cache_clear()
    lines = SCRIPT.splitlines(keepends=True)
    found = [row for each in Family.__subclasses__() for row in each(ast.parse(SCRIPT), "train.py", lines).run()]
    assert [(line, column, kind) for line, column, _, kind in found] == [(5, 4, Freezing)]
    assert asked == [SCRIPT.encode()]
    flake8_plugin._report.cache_clear()
