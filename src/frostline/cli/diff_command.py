"""``frostline diff``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli.checkpoint_inputs import AllowPickle, AsJson, Take, show
from frostline.cli.console import print_json

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline diff before.pth after.pth
  frostline diff start.safetensors runs/finetune-1 --no-values
  frostline diff a.pth b.pth --rename 'backbone. -> ' --take model
"""


def diff(
    before: Annotated[Path, typer.Argument(help="A file, a folder or an index of shards.", metavar="A")],
    after: Annotated[Path, typer.Argument(help="What it is compared with.", metavar="B")],
    take: Take = None,
    rename: Annotated[
        list[str] | None, typer.Option(help="Rename in A before comparing: 'old -> new'; again for more.")
    ] = None,
    values: Annotated[bool, typer.Option(help="Compare values too, not only names, shapes and types.")] = True,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Say what differs between two checkpoints: weights, biases and norm statistics, by part.

    Exit code 1 if anything differs. Neither file is changed, and no code of them is run.
    """
    from frostline.checkpoint import compare, open_checkpoint
    from frostline.checkpoint.rules import read_renames, rename_all

    left, right = (open_checkpoint(each, take=take, allow_pickle=allow_pickle) for each in (before, after))
    tensors = left.tensors
    if rename:
        renamed = rename_all(tensors, read_renames(rename))
        tensors = {new: entry for name, entry in tensors.items() for new in renamed.get(name, (name,))}
    comparison = compare(tensors, right.tensors, values=values)
    if as_json:
        print_json(comparison.to_json())
    else:
        for side in (left, right):
            said = side.choices()
            if said:
                show(f"{side.title}: {'; '.join(said)}")
        show(comparison)
    if comparison:
        raise typer.Exit(1)
