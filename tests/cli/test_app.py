"""The program itself: help, version, exit codes, and that help does not wait for torch."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

import frostline

COMMANDS = ["finetune", "explain", "doctor", "rule", "diagnose", "recalibrate"]


def program(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-h"], *([name, "--help"] for name in COMMANDS), ["explain", "-h"], ["--version"], []],
)
def test_what_needs_no_model_does_not_import_torch(arguments: list[str]):
    done = program(
        "import sys\n"
        "from frostline.cli import main\n"
        f"sys.argv = ['frostline', *{arguments!r}]\n"
        "try:\n    main()\nfinally:\n"
        "    heavy = {'torch', 'numpy', 'accelerate', 'timm', 'matplotlib'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy), file=sys.stderr)\n"
    )
    assert done.stderr.splitlines()[-1] == "heavy: []"
    assert done.returncode == (0 if arguments else 2)


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_a_missing_extra_of_the_command_line_says_how_to_install_it(package: str):
    done = program(
        "import sys\n"
        "class Hidden:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden)\n"
        "from frostline.cli import main\n"
        "sys.argv = ['frostline', 'finetune']\n"
        "main()\n"
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: The command line needs the package {package!r}, which is not installed.\n"
        "  fix: python -m pip install 'frostline[cli]'\n"
    )


def test_the_module_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "frostline", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"frostline {frostline.__version__}\n", "")


def test_help_names_commands_and_exit_codes_in_eighty_columns(command: Any):
    done = command("--help")
    assert (done.code, done.err) == (0, "")
    assert all(f"\n  {name} " in done.out for name in COMMANDS)
    assert "Exit codes: 0 clean or complete" in done.out
    assert "..." not in done.out.partition("Commands:")[2]  # no sentence is cut short
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_has_examples_in_eighty_columns(command: Any, name: str):
    done = command(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"\n    frostline {name}" in done.out
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["finetun"], "frostline has no command 'finetun'"),
        (["--nonsense"], "frostline has no option --nonsense"),
        (["finetune", "--nonsense"], "frostline finetune has no option --nonsense"),
        (["finetune", "--epochs", "many"], "invalid value for '--epochs'"),
        (["finetune", "--lr", "fast"], "invalid value for '--lr'"),
        (["finetune", "extra"], "unexpected extra argument"),
        (["explain"], "missing argument 'MODEL'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_wrong_usage_is_code_2_with_the_reason(command: Any, arguments: list[str], said: str):
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith("error: ")
    assert "\n  fix: frostline " in done.err
    assert len(done.err.splitlines()) <= 3


def test_emoji_codes_in_names_are_printed_as_they_are(command: Any):
    """rich would make a picture of ``:abc:``."""
    done = command("finetune", "--device", "cuda:abc")
    assert done.err.startswith("error: --device cuda:abc: not available here.\n")


def test_an_interruption_is_one_line_and_code_130(command: Any, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("frostline.cli.rule_command._print_list", interrupt)
    assert tuple(command("rule")) == (130, "", "stopped\n")
