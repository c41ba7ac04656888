"""``frostline plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli.checkpoint_inputs import AllowPickle, AsJson, Source, Take, check_plan_out, show
from frostline.cli.completion import models
from frostline.cli.console import ERRORS, print_json, say

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline plan model.pth --model timm/resnet18
  frostline plan moco.pth --model torchvision/resnet50 --take encoder_q \\
    --keep fc -o plan.json
  frostline plan old.pth --model nets:build \\
    --rename 'layer{n}.conv{m} -> stages.{n-1}.conv{m}'
"""


def plan(
    checkpoint: Source,
    model: Annotated[
        str, typer.Option(help="timm/NAME, torchvision/NAME or package.module:factory.", autocompletion=models)
    ],
    classes: Annotated[
        int | None, typer.Option(help="Width of the model's classifier; by default the checkpoint's.", min=1)
    ] = None,
    take: Take = None,
    rename: Annotated[list[str] | None, typer.Option(help="A rule, 'old -> new'; again for more.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="What keeps its values in the model: a glob; again for more.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(help="What of the checkpoint is not wanted: a glob; again for more.")
    ] = None,
    adapt: Annotated[
        list[str] | None,
        typer.Option(help="input-channels, position-embedding, conv-linear, scalar or narrow; again for more."),
    ] = None,
    accept_ambiguous: Annotated[
        bool, typer.Option("--accept-ambiguous", help="Take the assignment shown where another is as good.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the plan as JSON, for frostline convert.", metavar="FILE")
    ] = None,
    allow_pickle: AllowPickle = False,
    as_json: AsJson = False,
) -> None:
    """Plan how a model takes the values of a checkpoint: which tensor goes where, and what is left over.

    Nothing is loaded. Exit code 1 if something is not accounted for, or ambiguous.
    """
    if out is not None:
        check_plan_out(out)
    from frostline.checkpoint import plan_load, save_plan
    from frostline.errors import ModelError
    from frostline.finetune.checkpointed_model import build_to_fit

    default = 1000  # what timm and torchvision build
    try:
        built = build_to_fit(
            model, checkpoint, num_classes=default, take=take, width=classes, allow_pickle=allow_pickle
        )
    except ModelError:
        if classes:
            raise
        # A classifier that no width makes fit is for the plan to say.
        built = build_to_fit(model, None, num_classes=default)
    found = plan_load(
        built.model,
        checkpoint,
        take=take,
        rename=rename,
        keep=keep or (),
        drop=drop or (),
        adapt=adapt or (),
        accept_ambiguous=accept_ambiguous,
        allow_pickle=allow_pickle,
    )
    if out is not None:
        save_plan(found, out)
    if as_json:
        print_json(found.to_json())
    else:
        show(found)
        if out is not None:
            say(f"plan written to {out}", console=ERRORS)
    if not found.complete:
        raise typer.Exit(1)
