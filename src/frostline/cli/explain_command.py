"""``frostline explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.completion import models
from frostline.cli.console import print_json, say
from frostline.cli.norm_inputs import Html, check_page, write_page

if TYPE_CHECKING:
    from frostline.freezing.explain import Explanation

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline explain torchvision/resnet18
  frostline explain timm/vit_tiny_patch16_224 --freeze 'blocks*'
  frostline explain nets:build --checkpoint model.pth --html layers.html
"""


def explain(
    model: Annotated[
        str,
        typer.Argument(
            help="timm/NAME, torchvision/NAME or package.module:factory.", metavar="MODEL", autocompletion=models
        ),
    ],
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Hold this part first: a glob on dotted paths; again for more.", metavar="SELECTOR"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Load these weights first; never run as code.", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    html: Html = None,
) -> None:
    """Say for each layer whether it trains, its mode, which statistics it uses and which it updates.

    Nothing is run. Without a checkpoint the weights are random, or what a factory leaves. Exit code 1 if a layer is
    frozen by half.
    """
    check_page(html)
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
            say(f"loaded {start.summary}\n")
        say(explanation)
    if html is not None:
        write_page(html, _page(model, explanation, None if start is None else start.summary))
    if explanation.findings:
        raise typer.Exit(1)


def _page(model: str, explanation: Explanation, loaded: str | None) -> str:
    from frostline.report import TablePage, render_table
    from frostline.tables import cell_text

    columns, rows = explanation.table()
    notes = [f"loaded {loaded}"] if loaded else []
    notes += [str(finding) for finding in explanation.findings]
    return render_table(
        TablePage(
            "layers, and what they do", model, columns, [[cell_text(cell) for cell in row] for row in rows], notes
        )
    )
