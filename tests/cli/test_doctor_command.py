"""The command: what it writes, what it ends with, and what it says to a wrong call."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from frostline.cli import main

SCRIPTS = Path(__file__).parents[1] / "doctor" / "scripts"
NAIVE = SCRIPTS / "s1_two_heads.py"
RIGHT = """
import torch
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(4):
    optimizer.zero_grad()
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
print("the script's own words")
"""


@pytest.fixture
def doctor(monkeypatch, capfd):
    """Run the command; its exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["frostline", "doctor", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        said = capfd.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def right(tmp_path):
    path = tmp_path / "right.py"
    path.write_text(RIGHT)
    return path


def test_text_names_the_cause_and_ends_with_one(doctor):
    code, out, _ = doctor("--steps", 8, NAIVE)
    assert code == 1
    assert "cause F107" in out
    assert 'frostline.freeze(net, "trunk")' in out
    assert "checked and found right" in out


def test_a_sound_script_ends_with_zero(doctor, right):
    code, out, _ = doctor(right)
    assert code == 0
    assert "nothing found" in out
    assert "the script's own words" in out


def test_what_stands_behind_the_script_is_the_scripts(doctor, tmp_path):
    path = tmp_path / "told.py"
    path.write_text(RIGHT + "import sys\nprint(sys.argv[1:])\n")
    code, out, _ = doctor("--fail-on", "never", path, "--steps", "3", "--json", "-h")
    assert "['--steps', '3', '--json', '-h']" in out
    assert code == 0


def test_json_alone_is_on_standard_output(doctor, right):
    code, out, err = doctor("--json", right)
    told = json.loads(out)
    assert (code, told["schema_version"], told["steps"], told["findings"]) == (0, 1, 4, [])
    assert "the script's own words" in err


def test_fail_on_decides_what_counts(doctor):
    assert doctor("--steps", 4, "--fail-on", "never", NAIVE)[0] == 0
    assert doctor("--steps", 4, "--fail-on", "error", NAIVE)[0] == 1


def test_a_baseline_lets_known_findings_pass_and_new_ones_not(doctor, tmp_path):
    known = tmp_path / "known.json"
    assert doctor("--steps", 4, "--write-baseline", known, NAIVE)[0] == 1
    code, out, _ = doctor("--steps", 4, "--json", "--baseline", known, NAIVE)
    told = json.loads(out)
    assert code == 0
    assert [row["known"] for row in told["findings"] if row["severity"] == "error"] == [True]
    assert doctor("--steps", 4, "--baseline", known, SCRIPTS / "s9_accumulation.py")[0] == 1


def test_files_are_written_whole(doctor, tmp_path):
    page, sarif = tmp_path / "doctor.html", tmp_path / "doctor.sarif"
    doctor("--steps", 4, "--html", page, "--sarif", sarif, NAIVE)
    assert "F107" in page.read_text()
    run = json.loads(sarif.read_text())["runs"][0]
    assert run["results"][0]["ruleId"] == "F107"
    assert run["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"] > 0


def test_remedies_in_memory_show_before_and_after(doctor):
    code, out, _ = doctor("--steps", 4, "--apply", "--json", NAIVE)
    told = json.loads(out)
    assert code == 0
    assert [row["code"] for row in told["before"] if row["severity"] == "error"] == ["F107"]
    assert told["applied"] == ["F107: a hold on 1 normalization layer"]


def test_a_crash_is_shown_with_what_was_seen(doctor, tmp_path):
    path = tmp_path / "crashes.py"
    path.write_text(RIGHT + "model(torch.randn(4, 5))\n")
    code, out, _ = doctor(path)
    assert code == 1
    assert "RuntimeError" in out
    assert "model(torch.randn(4, 5))" in out
    assert "4 steps" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.py",), "there is no script nowhere.py"),
        (("pyproject.toml",), "pyproject.toml is not a Python file"),
        (("--html", "page.txt", NAIVE), "no name of an HTML file"),
        (("--baseline", "nowhere.json", NAIVE), "nowhere.json"),
        (("--fail-on", "anything", NAIVE), "anything"),
        (("--steps", "-1", NAIVE), "greater than or equal to 0"),
        (("--frozen", "backbon", NAIVE), "backbon"),
        (("--stepz", "3", NAIVE), "frostline doctor has no option --stepz\n  did you mean: --steps"),
    ],
)
def test_wrong_calls_end_with_two_and_say_why(doctor, arguments, said):
    code, out, err = doctor(*arguments)
    assert code == 2
    assert said in out + err


def test_a_damaged_baseline_ends_with_three(doctor, tmp_path):
    known = tmp_path / "known.json"
    known.write_text('{"schema_version": 1, "findings": [{"id"')
    code, _, err = doctor("--baseline", known, NAIVE)
    assert code == 3
    assert "cannot be read" in err


def test_a_declared_part_that_moves_is_an_error(doctor, right):
    code, out, _ = doctor("--json", "--frozen", "bias", right)
    told = json.loads(out)
    assert code == 1
    assert told["findings"][0]["severity"] == "error"
    assert "bias" in told["findings"][0]["paths"]
    assert told["findings"][0]["inferred"] is False


def test_an_option_behind_the_script_is_the_scripts_and_that_is_said(doctor, right):
    code, _, told = doctor(right, "--apply", "--html=page.html")
    assert code == 0
    assert told == f"note: --apply, --html stand behind {right}: the script got it\n  fix: put it in front\n"
    assert doctor(right, "--epochs", "3")[2] == ""


def test_a_script_of_a_package_is_said_to_be_a_module(doctor, tmp_path, monkeypatch):
    inner = tmp_path / "proj" / "jobs"
    inner.mkdir(parents=True)
    for folder in (tmp_path / "proj", inner):
        (folder / "__init__.py").touch()
    (inner / "train.py").write_text("from . import data\n")
    monkeypatch.chdir(tmp_path)
    code, _, told = doctor("proj/jobs/train.py")
    assert code == 1
    assert told == "note: proj/jobs/train.py belongs to a package\n  fix: frostline doctor -m proj.jobs.train\n"
