"""``frostline lint`` as a program, without typer: the same output and exit codes as with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frostline.cli import main
from frostline.cli.lint_options import LintOptions
from frostline.cli.plainly import run_plainly

WRONG = "from torch import nn\nnet = nn.Linear(3, 4)\nfor p in net.parameters():\n    p.require_grad = False\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("train.py").write_text(WRONG)
    Path("fine.py").write_text("x = 1\n")


def plainly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["frostline", "lint", *arguments])
    with pytest.raises(SystemExit) as leaving:
        main()
    return (int(leaving.value.code or 0), *capsys.readouterr())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fine.py"],
        ["--json"],
        ["--output-format", "concise"],
        ["--diff"],
        ["--show-files"],
        ["--select", "F999"],
        ["nowhere.py"],
        ["--baseline", "none.json"],
    ],
    ids=" ".join,
)
def test_it_says_what_typer_would(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert plainly(monkeypatch, capsys, *arguments) == tuple(command("lint", *arguments))


def test_mistakes_and_help_are_typers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = plainly(monkeypatch, capsys, "--selekt", "F1")
    assert (code, out) == (2, "")
    assert "has no option --selekt\n  did you mean: --select" in err
    assert "Usage: frostline lint" in plainly(monkeypatch, capsys, "--help")[1]


def test_neither_typer_nor_rich_is_imported_or_needed() -> None:
    code = (
        "import sys\n"
        "sys.modules.update(typer=None, rich=None)\n"
        "from frostline.cli import main\n"
        "sys.argv = ['frostline', 'lint', 'train.py', '--no-cache']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "F101" in done.stdout


def test_an_interruption_has_the_code_that_shells_give_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(options: LintOptions) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("frostline.cli.lint_job.run_lint", interrupt)
    with pytest.raises(SystemExit) as leaving:
        run_plainly(LintOptions())
    assert (leaving.value.code, capsys.readouterr().err) == (130, "stopped\n")


@pytest.mark.skipif(os.name == "nt", reason="pipes of Windows end otherwise")
def test_a_reader_that_leaves_ends_it_quietly() -> None:
    Path("many.py").write_text(WRONG + "    p.require_grad = False\n" * 3000)
    program = subprocess.Popen(
        [sys.executable, "-m", "frostline", "lint", "many.py", "--no-cache"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None
    assert program.stderr is not None
    with program.stdout, program.stderr:
        program.stdout.read(100)
        program.stdout.close()
        said = program.stderr.read()
    assert (program.wait(), said) == (1, b"")
