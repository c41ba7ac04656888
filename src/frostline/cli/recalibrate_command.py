"""``frostline recalibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from frostline.cli.checkpoint_inputs import check_free, check_safetensors_name
from frostline.cli.completion import among
from frostline.cli.console import ERRORS, print_json
from frostline.cli.norm_inputs import (
    AsJson,
    Augment,
    Checkpoint,
    Device,
    Html,
    ImageSize,
    Inputs,
    Limit,
    Mean,
    Model,
    Passes,
    Seed,
    SkipBadImages,
    Std,
    Workers,
    check_page,
    columns,
    show,
    write_page,
)
from frostline.cli.norm_pages import recalibration_page
from frostline.cli.usage import one_of
from frostline.errors import FrostlineError
from frostline.json_values import finite

if TYPE_CHECKING:
    from frostline.norms.recalibrate import Recalibration

METHODS = ("all-at-once", "eval-consistent")
# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline recalibrate timm/resnet18 --checkpoint a.pth \\
    --data photos/train --held-out photos/val --out b.safetensors
  frostline recalibrate nets:build --checkpoint a.pth --data images \\
    --unchecked --out b.safetensors
"""


def recalibrate(
    model: Model,
    data: Annotated[
        Path, typer.Option(help="Training images to estimate on: CLASS/IMAGE, or images alone.", metavar="FOLDER")
    ],
    out: Annotated[Path, typer.Option(help="The new checkpoint, a .safetensors file.", metavar="FILE")],
    checkpoint: Checkpoint = None,
    held_out: Annotated[
        Path | None, typer.Option(help="Other images, CLASS/IMAGE, to check the result on.", metavar="FOLDER")
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Write the result although nothing checks that it does no harm.")
    ] = False,
    allow_imbalance: Annotated[
        bool, typer.Option("--allow-imbalance", help="With --unchecked: also of data that lacks whole classes.")
    ] = False,
    method: Annotated[
        str,
        typer.Option(
            help="all-at-once (one pass, as in training) or eval-consistent (exact; keeps activations in memory).",
            autocompletion=among("all-at-once|eval-consistent"),
        ),
    ] = "all-at-once",
    tolerance: Annotated[float, typer.Option(help="How much accuracy may be lost, such as 0.002.", min=0.0)] = 0.0,
    batch_size: Annotated[int, typer.Option(help="Images a batch; 64 and more are advised.", min=2)] = 64,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at --out.")] = False,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    augment: Augment = "auto",
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = 2,
    skip_bad_images: SkipBadImages = False,
    as_json: AsJson = False,
    html: Html = None,
) -> None:
    """Estimate the running statistics of normalization layers anew, on training images with their augmentation.

    The new checkpoint is written only if the accuracy on held-out images is not lower with it; otherwise nothing is
    written, and the exit code is 1. The old checkpoint stays as it is.
    """
    if method not in METHODS:
        raise FrostlineError(f"--method {method}: unknown.\n  fix: {one_of(method, METHODS)}")
    if unchecked is (held_out is not None):
        raise FrostlineError(_both(held_out) if unchecked else _neither(out))
    if allow_imbalance and not unchecked:
        raise FrostlineError(
            "--allow-imbalance without --unchecked: held-out images check what an imbalance does.\n  fix: leave it out"
        )
    if held_out is not None and held_out.exists() and data.exists() and held_out.samefile(data):
        raise FrostlineError(
            f"--held-out {held_out}: those are the images of --data, on which the statistics are estimated.\n"
            "  fix: a folder of other images, or --unchecked"
        )
    _check_out(out, checkpoint, force=force)
    check_page(html)
    folders = {"calibration data": ("--data ", data)}
    if held_out is not None:
        folders["held-out data"] = ("--held-out ", held_out)
    with Passes(ERRORS) as passes:
        from frostline.norms.recalibrate import recalibrate as recalibrate_model

        inputs = Inputs(
            model,
            checkpoint,
            folders,
            labelled=["held-out data"] if held_out is not None else [],
            instead="--unchecked in place of --held-out",
            batch_size=batch_size,
            image_size=image_size,
            mean=mean,
            std=std,
            augment=augment,
            limit=limit,
            seed=seed,
            device=device,
            workers=workers,
            skip_bad_images=skip_bad_images,
            passes=passes,
        )
        result = recalibrate_model(
            inputs.loaded.model,
            inputs.batches("calibration data", training=True),
            metric=None if held_out is None else "accuracy",
            held_out=None if held_out is None else inputs.batches("held-out data"),
            tolerance=tolerance,
            allow_imbalance=allow_imbalance,
            method=cast("Any", method),
            progress=passes.named,
        )
    facts = inputs.facts(["calibration data"])
    written = _write(result, inputs, out)
    if as_json:
        told = {**result.to_json(), "out": None if written is None else str(written), "inputs": inputs.to_json()}
        print_json(finite(told))
    else:
        show([*columns(facts), "", result, ""])
        show([f"checkpoint  {written}" if written is not None else "nothing was written"])
    if html is not None:
        from frostline.report import render_norms

        write_page(html, render_norms(recalibration_page(result, model, facts, str(written or "nothing"))))
        if not as_json:
            show([f"report      {html}"])
    if result.plan.changes and not result.accepted:
        raise typer.Exit(1)


def _write(result: Recalibration, inputs: Inputs, out: Path) -> Path | None:
    if not (result.accepted and result.plan.changes):
        return None
    from frostline.finetune.checkpointed_model import save_model

    told = {"frostline.recalibrated": result.plan.method, "frostline.checked": "yes" if result.checked else "no"}
    save_model(inputs.loaded.model, out, told)
    return out


def _check_out(out: Path, checkpoint: Path | None, *, force: bool) -> None:
    check_safetensors_name(out, "--out ")
    if not out.parent.is_dir():
        raise FrostlineError(f"--out {out}: the folder {out.parent} does not exist.\n  fix: make it, or another --out")
    if checkpoint is not None and out.exists() and checkpoint.exists() and out.samefile(checkpoint):
        raise FrostlineError(f"--out {out}: that is the old checkpoint.\n  fix: another name")
    check_free(out, "--out ", force=force)


def _neither(out: Path) -> str:
    return (
        f"nothing would check whether {out} is better than what it was made from: better statistics do not always make "
        "a better model.\n  fix: --held-out FOLDER with labelled images that are not in --data, or --unchecked"
    )


def _both(held_out: Path | None) -> str:
    return f"--unchecked and --held-out {held_out}: the one says not to do what the other is for.\n  fix: leave out one"
