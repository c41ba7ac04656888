"""The commands, and how errors leave the program."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

import frostline
from frostline.cli.commands import LateGroup
from frostline.cli.completion import answer_for_shell
from frostline.cli.plainly import INTERRUPTED, leave_closed_pipe
from frostline.cli.usage import told, with_near_paths
from frostline.errors import FrostlineError, ProcessLost

app = typer.Typer(
    name="frostline",
    cls=LateGroup,
    help="Train part of a PyTorch model, and prove that the rest did not move.",
    epilog=(
        "Exit codes: 0 clean or complete, 1 findings or incomplete, 2 wrong usage, 3 unsafe or corrupt input. "
        "Completion for a shell that is not the current one: --install-completion bash, zsh or fish."
    ),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# What Python itself hides from users of a program; PYTHONWARNINGS is about other programs than this one.
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"frostline {frostline.__version__}")
        raise typer.Exit


@app.callback()
def _options(  # pyright: ignore[reportUnusedFunction] - registered by the decorator
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """What can be given before a command."""


def run() -> None:
    """Run the command line; an error that Frostline raises on purpose is one message and an exit code."""
    warnings.resetwarnings()
    for category in _FOR_DEVELOPERS:
        warnings.simplefilter("ignore", category)
    warnings.showwarning = _show_warning
    try:
        code = 0 if answer_for_shell(sys.argv[1:]) else _run_command()
        sys.stdout.flush()
    except ProcessLost as error:
        # The first process may be the one that is gone.
        if error.speaks:
            sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    except FrostlineError as error:
        _say(f"error: {with_near_paths(str(error), sys.argv[1:])}")
        code = error.exit_code
    except BrokenPipeError:
        leave_closed_pipe()
        code = 1
    sys.exit(code)


def _run_command() -> int:
    """Run what the command line asks for; its exit code. A mistake in it is one message, and 2."""
    try:
        code = app(prog_name="frostline", standalone_mode=False)
    except typer.Abort:
        _say("stopped")
        return INTERRUPTED
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
            sys.stderr.write(f"{error}\n")
        else:
            _say(told(error))
        return getattr(error, "exit_code", 2)
    return code if isinstance(code, int) else 0


def _show_warning(message: Warning | str, *_: object) -> None:
    _say(f"warning: {message}")


def _say(text: str) -> None:
    # It brings rich, and most runs have nothing to say.
    from frostline.cli.console import ERRORS, say

    say(text, console=ERRORS)
