"""``frostline groups``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from frostline.cli.completion import models
from frostline.cli.console import print_json, say

if TYPE_CHECKING:
    from torch import nn

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline groups timm/vit_tiny_patch16_224 --layer-decay 0.75
  frostline groups torchvision/resnet18 --head-lr 0.01 --weight-decay 0.05
  frostline groups nets:build --freeze 'trunk*' --head classifier
"""


def groups(
    model: Annotated[
        str,
        typer.Argument(
            help="timm/NAME, torchvision/NAME or package.module:factory.", metavar="MODEL", autocompletion=models
        ),
    ],
    lr: Annotated[float, typer.Option(help="The rate; with --layer-decay that of the head.")] = 1e-3,
    head: Annotated[
        str | None, typer.Option(help="The head: a glob on dotted paths. The classifier by default.", metavar="NAME")
    ] = None,
    head_lr: Annotated[float | None, typer.Option(help="The rate of the head, if it has its own.")] = None,
    layer_decay: Annotated[
        float | None, typer.Option(help="Factor from one layer to the one before it, such as 0.75.")
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Of what decays; norms and biases are spared.")] = 0.0,
    freeze: Annotated[
        list[str] | None,
        typer.Option(help="Hold this part first: a glob on dotted paths; again for more.", metavar="SELECTOR"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Show the groups that a model's parameters would train in: depth, rate, decay, size, frozen or not.

    Nothing is trained. Each parameter is in exactly one group; what is frozen has its place from the start.
    """
    from frostline.finetune.checkpointed_model import load_model
    from frostline.freezing import freeze as freeze_part
    from frostline.optim import param_groups

    loaded = load_model(model, None, random_weights=True)
    if freeze:
        freeze_part(loaded.model, *freeze)
    if head is not None:
        _refuse_no_head(loaded.model, head)
    found = param_groups(
        loaded.model, lr, head=head, head_lr=head_lr, layer_decay=layer_decay, weight_decay=weight_decay
    )
    if as_json:
        print_json(found.to_json())
    else:
        say(found)


def _refuse_no_head(model: nn.Module, head: str) -> None:
    """A head is looked for among the layers that can be one, and not among all names."""
    from frostline.errors import NothingSelected, name_some
    from frostline.finetune.classifier import linear_paths
    from frostline.optim.depth import find_head
    from frostline.state.names import nearest
    from frostline.state.selection import select

    try:
        select(model, head)
    except NothingSelected:
        usual = find_head(model)
        known = list(dict.fromkeys(filter(None, [usual, *linear_paths(model)[::-1]])))
        near = nearest(head, known) or known
        fix = (
            f"one of the Linear layers: {name_some(near)}"
            if near
            else "the model has no Linear layer; leave --head out"
        )
        raise NothingSelected(f"--head {head}: the model has no part of that name\n  fix: {fix}") from None
