"""What the commands on checkpoints take in: common options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from frostline.cli.console import say

Source: TypeAlias = Annotated[
    Path, typer.Argument(help="A file, a folder or an index of shards; never run as code.", metavar="CHECKPOINT")
]
Take: TypeAlias = Annotated[
    str | None,
    typer.Option(help="The part that is wanted: a container's key, a path among the names, or both.", metavar="PATH"),
]
AllowPickle: TypeAlias = Annotated[
    bool, typer.Option("--allow-pickle", help="Run the code in the file. Only if you trust it like a program.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def show(text: object) -> None:
    """Print as it is: names from files have their control characters written out already."""
    say(text)
