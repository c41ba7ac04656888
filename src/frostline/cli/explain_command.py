"""``frostline explain``."""

from __future__ import annotations

from typing import Annotated

import typer

from frostline.cli.console import OUTPUT, print_json

SHORT = "Say for each layer whether it trains and what it updates."
# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline explain torchvision/resnet18
  frostline explain timm/vit_tiny_patch16_224 --freeze 'blocks*'
"""


def explain(
    model: Annotated[
        str, typer.Argument(help="timm/NAME, torchvision/NAME or package.module:factory.", metavar="MODEL")
    ],
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Hold this part first: a glob on dotted paths; again for more.", metavar="SELECTOR"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Say for each layer whether it trains, its mode, which statistics it uses and which it updates.

    The model is built with random weights and nothing is run. Exit code 1 if a layer is frozen by half.
    """
    from frostline.finetune.models import build_model
    from frostline.freezing import explain as explain_model
    from frostline.freezing import freeze as freeze_part

    built = build_model(model, num_classes=2, pretrained=False)
    if freeze:
        freeze_part(built.model, *freeze)
    explanation = explain_model(built.model)
    if as_json:
        print_json(explanation.to_json())
    else:
        OUTPUT.print(str(explanation), markup=False, highlight=False, soft_wrap=True)
    if explanation.findings:
        raise typer.Exit(1)
