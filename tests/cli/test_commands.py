"""Commands are listed by name, imported when they are run, and complete and correct as if all were there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frostline.cli import commands
from frostline.cli.commands import COMMANDS, real_command

CLI = Path(commands.__file__).parent


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program, which says at its end which of the modules of commands it imported."""
    code = (
        "import sys\nfrom frostline.cli import main\n"
        f"sys.argv = ['frostline', *{arguments!r}]\n"
        "try:\n    main()\nfinally:\n"
        "    print(*sorted(name for name in sys.modules if name.endswith('_command')), file=sys.stderr)\n"
        "    print('rich.console' in sys.modules, file=sys.stderr)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_every_module_of_a_command_is_in_the_table() -> None:
    assert {path.name for path in CLI.glob("*_command.py")} == {f"{name}_command.py" for name in COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_what_its_name_says(name: str) -> None:
    command = real_command(name)
    assert command.name == name
    assert command.get_short_help_str(200) == COMMANDS[name]
    assert command.epilog
    assert command.params


@pytest.mark.parametrize(
    ("arguments", "imported"),
    [(["--help"], ""), (["--version"], ""), (["diff", "--help"], "frostline.cli.diff_command")],
    ids=["help", "version", "a command"],
)
def test_only_what_is_run_is_imported(arguments: list[str], imported: str) -> None:
    assert program(*arguments).stderr.splitlines()[0] == imported


def test_the_list_of_commands_does_not_wait_for_rich() -> None:
    assert program("--help").stderr.splitlines()[1] == "False"


def test_the_table_is_the_list_in_its_order(command: Any) -> None:
    listed = command("--help").out.partition("Commands:\n")[2]
    assert [line.split()[0] for line in listed.splitlines() if line[:2] == "  " and line[2:3].strip()][
        : len(COMMANDS)
    ] == list(COMMANDS)


def test_a_near_miss_is_named(command: Any) -> None:
    done = command("docter")
    assert (done.code, done.out) == (2, "")
    assert "\n  did you mean: doctor\n" in done.err
    assert "error: frostline meta has no command 'policy'\n  did you mean: policies\n" in command("meta", "policy").err


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("frostline di", ["diagnose", "diff"]),
        ("frostline doctor --st", ["--steps"]),
        ("frostline meta pol", ["policies"]),
    ],
)
def test_shells_complete_commands_and_their_options(words: str, offered: list[str]) -> None:
    done = program(_FROSTLINE_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(len(words.split()) - 1))
    assert done.stdout.split() == offered


def test_what_stands_behind_a_script_is_the_scripts_own() -> None:
    assert real_command("doctor").context_settings == {"allow_interspersed_args": False}
    assert real_command("explain").context_settings == {}


@pytest.mark.parametrize("arguments", [("finetune",), ("groups", "timm/resnet18"), ("explain", "timm/resnet18")])
@pytest.mark.parametrize("empty", ["", " ", "!"])
def test_an_empty_selector_does_not_hold_everything(command: Any, arguments: tuple[str, ...], empty: str):
    done = command(*arguments, "--freeze", "conv1", "--freeze", empty)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: --freeze '{empty}': an empty selector\n  fix: leave --freeze out")
