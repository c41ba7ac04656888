"""Completion for shells: the script of a shell that is named, and values that options are completed with.

Typer's own two options speak of the shell that runs them. It is found by the processes above, which is wrong in
containers, under ``sudo`` and where the script is written for another shell, so the shell can be said.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from frostline.cli.usage import did_you_mean
from frostline.errors import FrostlineError

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")
_SHOW, _INSTALL = "--show-completion", "--install-completion"
_VARIABLE = "_FROSTLINE_COMPLETE"


def answer_for_shell(arguments: Sequence[str]) -> bool:
    """Print or install the completion of a shell that is named.

    Args:
        arguments: of the program.

    Returns:
        Whether it was that; otherwise nothing is done.

    Raises:
        FrostlineError: there is no completion for that shell, or the shell that it would be installed for is not here.
    """
    if not arguments or arguments[0].partition("=")[0] not in (_SHOW, _INSTALL):
        return False
    option, equals, shell = arguments[0].partition("=")
    if not equals:
        if len(arguments) < 2:
            return False
        shell = arguments[1]
    if shell not in SHELLS:
        near = "".join(f"\n  {line}" for line in did_you_mean(shell, SHELLS))
        raise FrostlineError(f"{option} {shell}: there is none for that shell{near}\n  fix: one of {', '.join(SHELLS)}")
    # It does not export them, and has had them by these names since it could complete.
    completion: Any = importlib.import_module("typer.completion")

    if option == _SHOW:
        completion.completion_init()
        text = completion.get_completion_script(prog_name="frostline", complete_var=_VARIABLE, shell=shell)
        sys.stdout.write(f"{text}\n")
    else:
        try:
            named, path = completion.install(shell=shell, prog_name="frostline", complete_var=_VARIABLE)
        except (OSError, subprocess.CalledProcessError) as error:  # PowerShell is run, to ask for its profile
            raise FrostlineError(
                f"{option} {shell}: it could not be installed ({error})\n"
                f"  fix: frostline --show-completion {shell} prints the script; put it where {shell} reads it"
            ) from error
        sys.stdout.write(f"{named} completion installed in {path}\nIt takes effect in the next shell.\n")
    return True


def among(values: str) -> Callable[[str], list[str]]:
    """Completes with values that are written as an option's metavar.

    Example:
        >>> among("constant|cosine")("cos")
        ['cosine']
    """
    return lambda incomplete: [value for value in values.split("|") if value.startswith(incomplete)]


def codes(incomplete: str) -> list[str]:
    """The codes of rules that begin so, whatever the case; behind a comma the last of them.

    Example:
        >>> codes("f10")[:2], codes("M2,N301")
        (['F101', 'F102'], ['M2,N301'])
    """
    from frostline.findings import CATALOGUE

    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{code}" for code in CATALOGUE if code.startswith(last.upper())]


def models(incomplete: str) -> list[str]:
    """The two prefixes of names of models; the names themselves would take seconds to import."""
    return [prefix for prefix in ("timm/", "torchvision/") if prefix.startswith(incomplete)]
