"""What the commands on checkpoints take in: common options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from frostline.cli.console import say
from frostline.errors import FrostlineError

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

# Bytes that tell a plan from a checkpoint.
_HEAD = 4096


def show(text: object) -> None:
    """Print as it is: names from files have their control characters written out already."""
    say(text)


def is_plan(path: Path) -> bool:
    """Whether a file holds what ``frostline plan -o`` writes, of whatever version; of a checkpoint the head is read."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            # JSON has no zeros; a checkpoint has some at its beginning, and may be larger than memory.
            if b"\0" in head or not head.lstrip().startswith(b"{"):
                return False
            data = json.loads(head + file.read())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and {"schema_version", "rows"} <= data.keys()


def check_plan_out(out: Path) -> None:
    """Raise where a plan would take the place of something else: a checkpoint, say."""
    if out.is_file() and out.stat().st_size and not is_plan(out):
        raise FrostlineError(
            f"-o {out}: it exists already, and is no plan ({out.stat().st_size:,} bytes).\n  fix: another name"
        )


def check_convert_paths(checkpoint: Path, plan: Path, out: Path, *, to: str, force: bool) -> None:
    """Raise where the arguments of ``frostline convert`` are in another order, or something would be replaced."""
    given = (checkpoint, plan, out)
    plans = [path for path in given if is_plan(path)]
    if plans and plan not in plans:
        others = [path for path in given if path != plans[0]]
        right = " ".join(map(str, (others[0], plans[0], *others[1:])))
        raise FrostlineError(
            f"{plan} is no plan, and {plans[0]} is one: the arguments are CHECKPOINT PLAN OUT.\n"
            f"  fix: frostline convert {right}"
        )
    for read in (checkpoint, plan):
        if out.exists() and read.exists() and out.samefile(read):
            raise FrostlineError(f"{out}: that is what is read, and would be replaced.\n  fix: another name")
    if to != "safetensors":
        return
    check_safetensors_name(out, otherwise=", or --to distributed")
    check_free(out, force=force)


def check_safetensors_name(out: Path, option: str = "", *, otherwise: str = "") -> None:
    """Raise where the name of a file that is to be written does not say that it is of safetensors.

    Args:
        out: the file.
        option: what it was given with, as it is written: ``"--out "``.
        otherwise: another way out, behind the fix.
    """
    if out.suffix != ".safetensors":
        better = out.with_suffix(".safetensors") if out.name else "model.safetensors"
        raise FrostlineError(
            f"{option}{out}: a safetensors file is written, and its name should say so.\n"
            f"  fix: {option}{better}{otherwise}"
        )


def check_free(out: Path, option: str = "", *, force: bool) -> None:
    """Raise where a file is in the way of one that is to be written, and ``--force`` does not say to replace it."""
    if out.exists() and (out.is_dir() or not force):
        fix = "another name" if out.is_dir() else "another name, or --force"
        raise FrostlineError(f"{option}{out}: it exists already.\n  fix: {fix}")
