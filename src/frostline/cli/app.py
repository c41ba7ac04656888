"""The commands, and how errors leave the program."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer

from frostline import __version__
from frostline.cli import (
    convert_command,
    diagnose_command,
    diff_command,
    doctor_command,
    explain_command,
    finetune_command,
    groups_command,
    inspect_command,
    meta_command,
    plan_command,
    recalibrate_command,
    rule_command,
    verify_command,
)
from frostline.cli.console import ERRORS
from frostline.errors import FrostlineError

app = typer.Typer(
    name="frostline",
    help="Train part of a PyTorch model, and prove that the rest did not move.",
    epilog="Exit codes: 0 clean or complete, 1 findings or incomplete, 2 wrong usage, 3 unsafe or corrupt input.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("finetune", short_help=finetune_command.SHORT, epilog=finetune_command.EXAMPLES)(finetune_command.finetune)
app.command("explain", short_help=explain_command.SHORT, epilog=explain_command.EXAMPLES)(explain_command.explain)
app.command("diagnose", short_help=diagnose_command.SHORT, epilog=diagnose_command.EXAMPLES)(diagnose_command.diagnose)
app.command("recalibrate", short_help=recalibrate_command.SHORT, epilog=recalibrate_command.EXAMPLES)(
    recalibrate_command.recalibrate
)
app.command(
    "doctor",
    short_help=doctor_command.SHORT,
    epilog=doctor_command.EXAMPLES,
    # Behind the script everything is the script's.
    context_settings={"allow_interspersed_args": False},
)(doctor_command.doctor)
app.command("rule", short_help=rule_command.SHORT, epilog=rule_command.EXAMPLES)(rule_command.rule)
app.add_typer(meta_command.app, name="meta", short_help=meta_command.SHORT)
app.command("groups", short_help=groups_command.SHORT, epilog=groups_command.EXAMPLES)(groups_command.groups)
app.command("inspect", short_help=inspect_command.SHORT, epilog=inspect_command.EXAMPLES)(inspect_command.inspect)
app.command("diff", short_help=diff_command.SHORT, epilog=diff_command.EXAMPLES)(diff_command.diff)
app.command("plan", short_help=plan_command.SHORT, epilog=plan_command.EXAMPLES)(plan_command.plan)
app.command("convert", short_help=convert_command.SHORT, epilog=convert_command.EXAMPLES)(convert_command.convert)
app.command("verify", short_help=verify_command.SHORT, epilog=verify_command.EXAMPLES)(verify_command.verify)

# What Python itself hides from users of a program; PYTHONWARNINGS is about other programs than this one.
_FOR_DEVELOPERS = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"frostline {__version__}")
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
    except FrostlineError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)


def _show_warning(message: Warning | str, *_: object) -> None:
    _say(f"warning: {message}")


def _say(text: str) -> None:
    ERRORS.print(text, markup=False, highlight=False, soft_wrap=True)
