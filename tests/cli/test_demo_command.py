"""``frostline demo``: the list, a script's code, its output and exit code, and what is said where it cannot run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frostline.cli import demo_command

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"S{number}" for number in range(1, 10)]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script of its own in the place of the nine."""
    monkeypatch.setattr(demo_command, "folder", lambda: tmp_path)
    return tmp_path / "s1_own.py"


def test_the_list_has_the_nine_with_a_sentence_each_in_eighty_columns(command: Any) -> None:
    done = command("demo")
    assert (done.code, done.err) == (0, "")
    rows = [line for line in done.out.splitlines() if line[:1] == "S"]
    assert [row[:2] for row in rows] == NAMES
    assert all(row[4:5].isupper() and len(row) > 40 for row in rows)
    assert not [row for row in rows if row[4:6] == row[:2]]
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("name", ["S2", "s2", " s2 "])
def test_show_prints_the_code_as_it_stands_in_the_file(command: Any, name: str) -> None:
    done = command("demo", name, "--show")
    assert (done.code, done.err) == (0, "")
    assert done.out == (ROOT / "examples" / "s2_frozen_net.py").read_text()


def test_standard_output_is_the_scripts_own(tmp_path: Path) -> None:
    (tmp_path / "s1_own.py").write_text("import sys\nprint('a line')\nprint('told', file=sys.stderr)\nsys.exit(7)\n")
    code = (
        "import pathlib, sys\nfrom frostline.cli import demo_command, main\n"
        f"demo_command.folder = lambda: pathlib.Path({str(tmp_path)!r})\n"
        "sys.argv = ['frostline', 'demo', 's1']\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, "a line\n")
    said = f"S1: python {tmp_path / 's1_own.py'} (the code: frostline demo S1 --show)"
    assert done.stderr.splitlines() == [said, "told"]


def test_the_exit_code_is_the_scripts(command: Any, script: Path) -> None:
    script.write_text("raise ValueError('so')\n")
    assert command("demo", "S1").code == 1
    script.write_text("pass\n")
    assert command("demo", "S1").code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_script_that_a_signal_ends_gives_the_code_that_shells_give(command: Any, script: Path) -> None:
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\n")
    assert command("demo", "S1").code == 128 + 15


def test_an_unknown_one_says_which_there_are(command: Any) -> None:
    done = command("demo", "S12")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: there is no demo 'S12': they are S1, S2, S3, S4, S5, S6, S7, S8, S9\n"
        "  fix: frostline demo says what each is about\n"
    )


def test_show_needs_a_name(command: Any) -> None:
    done = command("demo", "--show")
    assert (done.code, done.out) == (2, "")
    assert "which one?" in done.err


@pytest.mark.parametrize(
    ("imports", "said"),
    [
        ("import torch\nfrom nowhere_at_all.deep import x\nimport nowhere_too\n", "'nowhere_at_all', 'nowhere_too'"),
        ("import nowhere_at_all as far\n", "'nowhere_at_all'"),
    ],
)
def test_what_is_not_installed_is_said_before_anything_runs(
    command: Any, script: Path, imports: str, said: str
) -> None:
    script.write_text(f"print('it ran')\n{imports}")
    done = command("demo", "S1")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"error: The demo S1 needs {said}, which is not installed.\n  fix: python -m pip install 'frostline[all]'\n"
    )


def test_an_extra_beyond_all_is_named_where_a_script_needs_it(
    command: Any, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_command.importlib.util, "find_spec", lambda root: None)
    script.write_text("import lightning\n")
    assert "fix: python -m pip install 'frostline[all,lightning]'\n" in command("demo", "S1").err


def test_the_nine_import_nothing_but_what_all_brings() -> None:
    brought = {"torch", "sklearn", "frostline", *sys.stdlib_module_names}
    for path in demo_command.folder().glob("s[1-9]_*.py"):
        lines = [line.split() for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert {words[1].partition(".")[0] for words in lines} <= brought, path.name


def test_scripts_that_are_in_neither_place_are_missed_with_both(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "frostline"
    monkeypatch.setattr(demo_command.frostline, "__file__", str(package / "__init__.py"))
    done = command("demo", "S1")
    assert done.code == 2
    assert str(package / "demos") in done.err
    assert str(tmp_path / "examples") in done.err


def test_a_wheels_own_scripts_come_before_those_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "frostline"
    for place in (package / "demos", tmp_path / "examples"):
        place.mkdir(parents=True)
        (place / "s1_any.py").touch()
    monkeypatch.setattr(demo_command.frostline, "__file__", str(package / "__init__.py"))
    assert demo_command.folder() == package / "demos"


def test_shells_complete_the_names() -> None:
    assert [name for name, _ in demo_command._begun("s")] == NAMES
    assert [name for name, _ in demo_command._begun("S7")] == ["S7"]
