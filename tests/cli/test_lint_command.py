"""``frostline lint`` as a user types it: options, formats, exit codes, wrong usage, and how fast it starts."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WRONG = """\
from torch import nn

net = nn.Linear(3, 4)
for p in net.parameters():
    p.require_grad = False
"""
RIGHT = WRONG.replace("require_grad", "requires_grad")
LINE = "train.py:5:5: F101 [*] "


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One file with a mistake, one without."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    Path("train.py").write_text(WRONG)
    Path("fine.py").write_text(RIGHT)
    return tmp_path


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


# What is found


def test_the_working_directory_is_linted_in_full_by_default(command: Any) -> None:
    done = command("lint")
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("F101 error: ")
    assert "5 |     p.require_grad = False" in lines
    assert "  |     ^^^^^^^^^^^^^^" in lines
    assert any(line.startswith("  = why:  ") for line in lines)
    assert "  = fix:  Rename to requires_grad (safe, with --fix)" in lines
    assert lines[-1] == "Found 1 error in 2 files (1 fixable with --fix)."
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.out


def test_a_clean_file_is_clean(command: Any) -> None:
    assert command("lint", "fine.py") == (0, "1 file clean.\n", "")


def test_concise_is_a_line_a_finding(command: Any) -> None:
    done = command("lint", "--output-format", "concise")
    first, last = done.out.splitlines()
    assert first.startswith(LINE)
    assert last.startswith("Found 1 error")


def test_colour_is_asked_for_by_the_environment(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" in command("lint").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in command("lint").out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--select", "F1"], 1),
        (["--select", "O4"], 0),
        (["--select", "O4,F101"], 1),
        (["--select", "O4", "--select", "F"], 1),
        (["--select", "O4", "--extend-select", "F101"], 1),
        (["--ignore", "f101"], 0),
        (["--exclude", "train.py"], 0),
        (["--extend-exclude", "tr*.py"], 0),
        (["--exit-zero"], 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_rules_and_files_are_selected(command: Any, options: list[str], code: int) -> None:
    assert command("lint", *options).code == code


def test_statistics_count(command: Any) -> None:
    done = command("lint", "--statistics")
    assert done.code == 1
    assert done.out.splitlines()[2].split()[:2] == ["1", "F101"]


# For programs


@pytest.mark.parametrize("options", [["--json"], ["--output-format", "json"]])
def test_json_is_all_that_standard_output_has(command: Any, options: list[str]) -> None:
    Path("broken.py").write_text("def f(:\n")
    done = command("lint", *options)
    told = json.loads(done.out)
    assert (done.code, told["schema_version"], told["files"]) == (1, 1, 3)
    (row,) = told["findings"]
    assert (row["code"], row["file"], row["line"], row["column"]) == ("F101", "train.py", 5, 5)
    assert told["failures"][0]["file"] == "broken.py"
    assert done.err.startswith("error: broken.py:1:")


def test_sarif_is_all_that_standard_output_has(command: Any) -> None:
    done = command("lint", "--output-format", "sarif")
    (result,) = json.loads(done.out)["runs"][0]["results"]
    assert (done.code, done.err, result["ruleId"]) == (1, "", "F101")


def test_github_makes_annotations(command: Any) -> None:
    done = command("lint", "--output-format", "github")
    assert done.out.startswith("::error title=frostline F101,file=train.py,line=5,col=5,endLine=5,endColumn=19::")


# Fixes


def test_fix_mends_and_says_how_many(command: Any) -> None:
    done = command("lint", "--fix")
    assert (done.code, done.out) == (0, "Fixed 1; all 2 files clean.\n")
    assert Path("train.py").read_text() == RIGHT
    assert command("lint", "--fix").out == "All 2 files clean.\n"


def test_fix_can_count_as_a_failure(command: Any) -> None:
    assert command("lint", "--fix", "--exit-non-zero-on-fix").code == 1
    assert command("lint", "--fix", "--exit-non-zero-on-fix").code == 0


def test_diff_shows_and_writes_nothing(command: Any) -> None:
    done = command("lint", "--diff")
    assert (done.code, done.err) == (1, "1 mistake would be fixed.\n")
    assert "-    p.require_grad = False\n+    p.requires_grad = False\n" in done.out
    assert Path("train.py").read_text() == WRONG
    assert command("lint", "fine.py", "--diff") == (0, "", "Nothing would change.\n")


# Standard input


def test_standard_input_is_linted_under_its_name(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, WRONG)
    done = command("lint", "-", "--stdin-filename", "src/a.py", "--output-format", "concise")
    assert done.code == 1
    assert done.out.startswith("src/a.py:5:5: F101 ")
    typed(monkeypatch, WRONG)
    assert "5 |     p.require_grad = False" in command("lint", "-").out, "its lines are shown, though it is no file"


def test_standard_input_that_is_mended_goes_to_standard_output(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, WRONG)
    done = command("lint", "-", "--fix")
    assert (done.code, done.out, done.err) == (0, RIGHT, "Fixed 1; 1 file clean.\n")
    typed(monkeypatch, WRONG)
    assert "+    p.requires_grad = False" in command("lint", "-", "--diff").out


# Baselines


def test_what_is_in_a_baseline_is_known_and_one_more_is_new(command: Any) -> None:
    assert command("lint", "--write-baseline", "known.json") == (0, "1 finding in known.json as known.\n", "")
    done = command("lint", "--baseline", "known.json")
    assert (done.code, done.out) == (0, "1 finding of the baseline not shown: F101.\nAll 2 files clean.\n")
    Path("train.py").write_text("# above\n" + WRONG + "    p.require_grad = False\n")
    done = command("lint", "--baseline", "known.json", "--output-format", "concise")
    assert (done.code, done.out.splitlines()[0].split()[0]) == (1, "train.py:7:5:")
    Path("train.py").write_text(RIGHT)
    assert "1 of the baseline not found any more: F101." in command("lint", "--baseline", "known.json").out


def test_settings_may_name_the_baseline_and_the_format(command: Any) -> None:
    command("lint", "--write-baseline", "known.json")
    Path("pyproject.toml").write_text("[tool.frostline.lint]\nbaseline = 'known.json'\noutput-format = 'concise'\n")
    assert command("lint").code == 0
    assert command("lint", "--isolated").code == 1
    Path("train.py").write_text(WRONG.replace("net", "model"))
    Path("train.py").write_text(WRONG.replace("p.", "q.").replace("p in", "q in"))
    assert command("lint").out.startswith("train.py:5:5: F101 ")


# Bad input and wrong usage


def test_a_file_that_does_not_parse_is_named_and_the_others_go_on(command: Any) -> None:
    Path("broken.py").write_text("x = 1\ndef f(:\n")
    done = command("lint")
    assert done.code == 1
    assert done.err.startswith("error: broken.py:2:")
    assert "F101" in done.out
    only = command("lint", "broken.py")
    assert (only.code, only.out) == (2, "No file could be linted.\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--select", "F999"], "no rule of the linter is called 'F999', asked for by option --select"),
        (["--ignore", "X"], "no rule of the linter is called 'X', asked for by option --ignore"),
        (["trian.py"], "there is no file or folder 'trian.py'"),
        (["--baseline", "none.json"], "there is no baseline none.json"),
        (["--json", "--output-format", "sarif"], "--json and --output-format sarif"),
        (["--diff", "--json"], "--diff and --json: the one prints a diff, the other a document"),
        (["--diff", "--output-format", "github"], "--diff and --output-format github"),
        (["-", "train.py"], "- is standard input, and stands alone"),
        (["--select", ","], "--select ',' names nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_code_2_with_the_reason(command: Any, arguments: list[str], said: str) -> None:
    done = command("lint", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert said in done.err
    assert "near: train.py" in done.err or arguments != ["trian.py"]


@pytest.mark.parametrize("arguments", [["--output-format", "xml"], ["--jobs", "0"], ["--selekt", "F"]], ids=" ".join)
def test_options_that_do_not_exist_are_code_2_too(command: Any, arguments: list[str]) -> None:
    done = command("lint", *arguments)
    assert (done.code, done.out) == (2, "")
    assert arguments[0] in done.err


def test_files_are_listed_where_that_is_asked_for(command: Any) -> None:
    Path("venv").mkdir()
    Path("venv/a.py").touch()
    assert command("lint", "--show-files") == (0, "fine.py\ntrain.py\n", "")


# Start-up


def test_it_starts_without_torch_typer_and_rich() -> None:
    code = (
        "import sys\nfrom frostline.cli import main\nsys.argv = ['frostline', 'lint', 'train.py', '--no-cache']\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'numpy', 'typer', 'rich', 'jinja2', 'pathspec', 'frostline.report', 'multiprocessing'}\n"
        "    print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "[]\n")


def test_help_has_every_option_in_eighty_columns(command: Any) -> None:
    done = command("lint", "--help")
    assert (done.code, done.err) == (0, "")
    assert max(map(len, done.out.splitlines())) <= 80
    for option in ("--select", "--unsafe-fixes", "--write-baseline", "--exit-non-zero-on-fix", "--stdin-filename"):
        assert f"  {option}" in done.out
