"""``frostline explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli.console import OUTPUT, print_json

SHORT = "Say for each layer whether it trains and what it updates."
# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline explain torchvision/resnet18
  frostline explain timm/vit_tiny_patch16_224 --freeze 'blocks*'
  frostline explain nets:build --checkpoint model.pth
"""


def explain(
    model: Annotated[
        str, typer.Argument(help="timm/NAME, torchvision/NAME or package.module:factory.", metavar="MODEL")
    ],
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Hold this part first: a glob on dotted paths; again for more.", metavar="SELECTOR"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Load these weights first; never run as code.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Say for each layer whether it trains, its mode, which statistics it uses and which it updates.

    Nothing is run. Without a checkpoint the weights are random, or what a factory leaves. Exit code 1 if a layer is
    frozen by half.
    """
    from frostline.finetune.checkpointed_model import load_model
    from frostline.freezing import explain as explain_model
    from frostline.freezing import freeze as freeze_part

    loaded = load_model(model, checkpoint, random_weights=True)
    if freeze:
        freeze_part(loaded.model, *freeze)
    explanation = explain_model(loaded.model)
    start = loaded.start
    if as_json:
        told = None if start is None else {"path": str(start.path), "summary": start.summary}
        print_json({**explanation.to_json(), "checkpoint": told})
    else:
        if start is not None:
            OUTPUT.print(f"loaded {start.summary}\n", markup=False, highlight=False, soft_wrap=True)
        OUTPUT.print(str(explanation), markup=False, highlight=False, soft_wrap=True)
    if explanation.findings:
        raise typer.Exit(1)
