"""``frostline convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli.checkpoint_inputs import AsJson, Source, show
from frostline.cli.console import count, print_json

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline plan old.pth --model nets:build -o plan.json
  frostline convert old.pth plan.json new.safetensors
  frostline verify old.pth new.safetensors
"""


def convert(
    checkpoint: Source,
    plan: Annotated[Path, typer.Argument(help="What frostline plan -o wrote.", metavar="PLAN")],
    out: Annotated[Path, typer.Argument(help="The new file, .safetensors.", metavar="OUT")],
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as safetensors under a model's names, as a plan says; the plan goes into the header.

    The file is written whole or not at all. The model is not needed.
    """
    from frostline.checkpoint import convert as convert_checkpoint

    written = convert_checkpoint(checkpoint, plan, out)
    if as_json:
        print_json({"schema_version": 1, "path": str(out), "tensors": written, "bytes": out.stat().st_size})
    else:
        show(f"{out}: {count(written, 'tensor')}, {out.stat().st_size:,} bytes, with the plan in its header")
