"""The hook that other repositories can use: pre-commit accepts it, and it installs what the command line needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / ".pre-commit-hooks.yaml"
# The rows of the extra, as they stand in pyproject.toml; Python 3.10 has no reader of TOML.
PROJECT = (ROOT / "pyproject.toml").read_text()


@pytest.fixture(scope="module")
def hook() -> dict[str, Any]:
    (only,) = yaml.safe_load(MANIFEST.read_text())
    return only


def validated(manifest: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "validate-manifest", str(manifest)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_pre_commit_accepts_the_manifest(tmp_path: Path) -> None:
    done = validated(MANIFEST)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    broken = tmp_path / "hooks.yaml"
    broken.write_text(MANIFEST.read_text().replace("entry:", "entri:"))
    assert validated(broken).returncode == 1, "the twin: what lacks an entry is not accepted"


def test_it_runs_the_linter_on_python_and_notebooks(hook: dict[str, Any]) -> None:
    assert (hook["id"], hook["entry"]) == ("frostline-lint", "frostline lint")
    assert hook["types_or"] == ["python", "jupyter"]
    assert hook["require_serial"] is True


def test_it_installs_what_the_extra_of_the_command_line_does(hook: dict[str, Any]) -> None:
    row = next(line for line in PROJECT.splitlines() if line.startswith("cli = ["))
    assert hook["additional_dependencies"] == [part.strip(' ,"') for part in row.split('"')[1::2]]
