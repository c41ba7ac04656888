"""The example of a workflow: it is YAML, and its commands are the linter's."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from frostline.cli.commands import real_command

WORKFLOW = Path(__file__).parents[1] / "examples" / "lint_on_github.yml"


def steps() -> list[dict[str, Any]]:
    return yaml.safe_load(WORKFLOW.read_text())["jobs"]["lint"]["steps"]


def test_its_commands_have_options_that_exist() -> None:
    commands = [
        shlex.split(step["run"].partition(">")[0]) for step in steps() if "frostline lint" in step.get("run", "")
    ]
    assert commands == [
        ["frostline", "lint", "--output-format", "github"],
        ["frostline", "lint", "--output-format", "sarif", "--exit-zero"],
    ]
    known = {option for parameter in real_command("lint").params for option in parameter.opts}
    text = WORKFLOW.read_text()
    assert {word for command in commands for word in command if word.startswith("--")} <= known
    assert {word for word in ("--write-baseline", "--baseline") if word in text} <= known


def test_what_is_uploaded_is_what_was_written() -> None:
    written = next(step["run"].partition(">")[2].strip() for step in steps() if "sarif" in step.get("run", ""))
    upload = next(step for step in steps() if "upload-sarif" in step.get("uses", ""))
    assert upload["with"]["sarif_file"] == written
    assert upload["if"] == "always()"
    permissions = yaml.safe_load(WORKFLOW.read_text())["permissions"]
    assert permissions == {"contents": "read", "security-events": "write"}
