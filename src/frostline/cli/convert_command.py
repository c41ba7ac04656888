"""``frostline convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from frostline.cli.checkpoint_inputs import AllowPickle, AsJson, Source, check_convert_paths, show
from frostline.cli.console import count, print_json

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline plan old.pth --model nets:build -o plan.json
  frostline convert old.pth plan.json new.safetensors
  frostline verify old.pth new.safetensors
  frostline convert old.pth plan.json step-0 --to distributed
"""


Form = Literal["safetensors", "distributed"]


def convert(
    checkpoint: Source,
    plan: Annotated[Path, typer.Argument(help="What frostline plan -o wrote.", metavar="PLAN")],
    out: Annotated[Path, typer.Argument(help="The new file, .safetensors; or the new folder.", metavar="OUT")],
    to: Annotated[
        Form, typer.Option(help="A file, or a folder of torch.distributed.checkpoint that does not exist yet.")
    ] = "safetensors",
    force: Annotated[bool, typer.Option("--force", help="Replace the file OUT.")] = False,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint under a model's names, as a plan says, and the plan with it.

    It is written whole or not at all. The model is not needed.
    """
    check_convert_paths(checkpoint, plan, out, to=to, force=force)
    from frostline.checkpoint import convert as convert_checkpoint

    written = convert_checkpoint(checkpoint, plan, out, to=to, allow_pickle=allow_pickle)
    size = sum(file.stat().st_size for file in (out.iterdir() if out.is_dir() else [out]))
    if as_json:
        print_json({"schema_version": 1, "path": str(out), "tensors": written, "bytes": size})
    else:
        where = "in its header" if to == "safetensors" else "beside them"
        show(f"{out}: {count(written, 'tensor')}, {size:,} bytes, with the plan {where}")
