"""``frostline inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli.checkpoint_inputs import AllowPickle, AsJson, Take, show
from frostline.cli.console import OUTPUT, print_json, room
from frostline.tables import fitted

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline inspect model.pth
  frostline inspect dino.pth --take teacher
  frostline inspect trunk.safetensors heads/*.safetensors
"""


def inspect(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(help="Files, folders or indexes of shards; several are listed.", metavar="CHECKPOINT..."),
    ],
    take: Take = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Say what is in a checkpoint: format, containers, wrappers, sizes and types by part, norm layers.

    No tensor is read and no code is run. Exit code 3 if a file is damaged or wants to run code.
    """
    from frostline.checkpoint import inspect as inspect_checkpoint
    from frostline.checkpoint import open_checkpoint
    from frostline.checkpoint.inspection import listing

    found = [inspect_checkpoint(open_checkpoint(each, take=take, allow_pickle=allow_pickle)) for each in checkpoints]
    if as_json:
        data = [each.to_json() for each in found]
        print_json(data[0] if len(data) == 1 else data)
    else:
        with fitted(room(OUTPUT)):
            show(found[0] if len(found) == 1 else listing(found))
