"""Shells complete commands, options and values, without waiting for torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frostline.cli.commands import real_command
from frostline.cli.meta_command import POLICIES
from frostline.finetune.config import PREFIXES
from frostline.finetune.strategy import STRATEGIES
from frostline.meta.policy import SOURCES
from frostline.meta.presets import PRESETS


def complete(words: str) -> tuple[list[str], str]:
    """What bash is offered behind these words, and which heavy packages were imported for it."""
    code = (
        "import sys\nfrom frostline.cli import main\nsys.argv = ['frostline']\n"
        "try:\n    main()\nfinally:\n"
        "    print(sorted({'torch', 'numpy', 'timm'} & set(sys.modules)), file=sys.stderr)\n"
    )
    environment = {"_FROSTLINE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    return done.stdout.split(), done.stderr.strip()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("frostline fin", ["finetune"]),
        ("frostline finetune --strat", ["--strategy"]),
        ("frostline finetune --strategy pro", ["probe-then-tune"]),
        ("frostline lint --output-format s", ["sarif"]),
        ("frostline rule F10", [f"F10{digit}" for digit in range(1, 10)]),
        ("frostline explain ti", ["timm/"]),
        ("frostline diagnose x --augment sh", ["shift"]),
    ],
)
def test_values_are_completed_without_torch(words: str, offered: list[str]) -> None:
    assert complete(words) == (offered, "[]")


def offers(name: str, option: str) -> set[str]:
    found = next(param for param in real_command(name).params if option in param.opts)
    return {item.value for item in found.shell_complete(None, "")}


def test_what_is_offered_is_what_there_is() -> None:
    assert offers("finetune", "--strategy") == set(STRATEGIES)
    assert offers("finetune", "--prefix") == set(PREFIXES)
    assert offers("meta", "--preset") == set(PRESETS)
    assert set(POLICIES.split("|")) <= set(SOURCES)


@pytest.mark.parametrize(("shell", "file"), [("bash", ".bashrc"), ("zsh", ".zshrc"), ("fish", ".config/fish")])
def test_a_shell_that_is_named_is_shown_and_installed(
    command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: str, file: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shown = command("--show-completion", shell)
    assert (shown.code, shown.err) == (0, "")
    assert f"complete_{shell}" in shown.out
    assert command("--install-completion", shell).code == 0
    assert (tmp_path / file).exists()


def test_a_shell_that_there_is_not(command: Any) -> None:
    done = command("--show-completion", "zhs")
    assert (done.code, done.out) == (2, "")
    assert "\n  did you mean: zsh\n  fix: one of bash, zsh, fish" in done.err


def test_a_shell_that_is_not_here_is_a_message(command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # PowerShell is run, to ask it where its profile is
    done = command("--install-completion", "powershell")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: --install-completion powershell: it could not be installed")
    assert "fix: frostline --show-completion powershell" in done.err
