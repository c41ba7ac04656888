"""``frostline verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli.checkpoint_inputs import AllowPickle, AsJson, show
from frostline.cli.console import print_json

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline verify old.pth new.safetensors
"""


def verify(
    original: Annotated[Path, typer.Argument(help="What was converted.", metavar="A")],
    converted: Annotated[Path, typer.Argument(help="What was made from it.", metavar="B")],
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Check by value that a converted checkpoint is what the plan in its header makes of the original.

    Without a plan in the header the names have to be the same. Exit code 1 if it does not hold.
    """
    from frostline.checkpoint import verify as verify_checkpoint

    found = verify_checkpoint(original, converted, allow_pickle=allow_pickle)
    if as_json:
        print_json(found.to_json())
    else:
        show(found)
    if not found.holds:
        raise typer.Exit(1)
