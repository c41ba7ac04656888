"""The table of commands, and a group that imports a command's module only when that command is run.

A command's module pulls in what it prints with; the linter runs on every save, and should not wait for fourteen others.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from frostline.errors import SelectionError

# Name, and what the list of commands says of it. `NAME_command.py` has the function NAME, or a whole `app`.
COMMANDS = {
    "demo": "Run one of nine mistakes, as a short script, with its repair.",
    "finetune": "Train a new head, and prove that the rest did not move.",
    "explain": "Say for each layer whether it trains and what it updates.",
    "diagnose": "Find why a model is worse in eval mode than in train mode.",
    "recalibrate": "Estimate running statistics anew, if it does no harm.",
    "doctor": "Run a training script as it is, and say what is wrong in it.",
    "lint": "Find the same mistakes in source, before anything runs.",
    "rule": "Print a rule of doctor and linter, or list them.",
    "meta": "Learn to learn from few examples, with an explicit statistics policy.",
    "groups": "Show the parameter groups that a model would train in.",
    "inspect": "Say what is in a checkpoint, without reading its tensors.",
    "diff": "Say what differs between two checkpoints, by value.",
    "plan": "Plan how a model takes a checkpoint; every tensor gets a verdict.",
    "convert": "Write a checkpoint under a model's names, by a plan.",
    "verify": "Check a converted checkpoint against the original, by value.",
}

# Options that say which part of a model is meant.
_SELECTORS = ("freeze", "head")


class LateGroup(TyperGroup):
    """A group that has all of :data:`COMMANDS`, each imported when it is asked for more than its name."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, short_help in COMMANDS.items():
            self.add_command(LateCommand(name=name, short_help=short_help), name)

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names in the order of the table, which older versions of typer would sort."""
        del ctx
        return list(COMMANDS)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what Ctrl+C ends is told from what ends with the same code by itself."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None


class LateCommand(TyperCommand):
    """Stands in for a command in lists; the command itself does all that is done with arguments."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command, which is run in it, prints its help and completes its options."""
        context = real_command(self.name or "").make_context(info_name, args, parent=parent, **extra)
        if not context.resilient_parsing:
            _refuse_empty_selectors(context.params)
        return context


def _refuse_empty_selectors(params: Mapping[str, Any]) -> None:
    """What a shell makes of a variable that is not set; as a selector it would be the whole model."""
    for name in _SELECTORS:
        given = params.get(name)
        several = given if isinstance(given, (list, tuple)) else [given]
        for one in several:  # pyright: ignore[reportUnknownVariableType]
            if isinstance(one, str) and not one.removeprefix("!").strip():
                raise SelectionError(
                    f"--{name} {shlex.quote(one)}: an empty selector\n"
                    f"  fix: leave --{name} out, or name a part; '*' is the whole"
                )


def real_command(name: str) -> Any:
    """A command with its options, from its module.

    Args:
        name: a key of :data:`COMMANDS`.
    """
    module = importlib.import_module(f"frostline.cli.{name}_command")
    room = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    if hasattr(module, "app"):
        room.add_typer(module.app, name=name, short_help=COMMANDS[name])
    else:
        room.command(
            name,
            short_help=COMMANDS[name],
            epilog=module.EXAMPLES,
            context_settings=getattr(module, "CONTEXT", None),
        )(getattr(module, name))
    return get_group(room).commands[name]
