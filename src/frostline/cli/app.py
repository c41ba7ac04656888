"""The commands, and how errors leave the program."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

import frostline
from frostline.cli.commands import LateGroup
from frostline.errors import FrostlineError, ProcessLost

app = typer.Typer(
    name="frostline",
    cls=LateGroup,
    help="Train part of a PyTorch model, and prove that the rest did not move.",
    epilog="Exit codes: 0 clean or complete, 1 findings or incomplete, 2 wrong usage, 3 unsafe or corrupt input.",
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
        app(prog_name="frostline")
    except ProcessLost as error:
        # The first process may be the one that is gone.
        if error.speaks:
            sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    except FrostlineError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)


def _show_warning(message: Warning | str, *_: object) -> None:
    _say(f"warning: {message}")


def _say(text: str) -> None:
    # It brings rich, and most runs have nothing to say.
    from frostline.cli.console import ERRORS

    ERRORS.print(text, markup=False, highlight=False, soft_wrap=True)
