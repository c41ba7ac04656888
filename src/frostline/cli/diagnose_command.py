"""``frostline diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frostline.cli.console import ERRORS, print_json
from frostline.cli.norm_inputs import (
    AsJson,
    Augment,
    BatchSize,
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
    domains_of,
    show,
    write_page,
)
from frostline.cli.norm_pages import diagnosis_page
from frostline.json_values import finite

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline diagnose timm/resnet18 --checkpoint a.pth --data photos/val
  frostline diagnose timm/resnet18 --checkpoint a.pth --data photos/val \\
    --train-data photos/train --html report.html
  frostline diagnose nets:build --checkpoint a.pth --data photo \\
    --domain photo=photo --domain sketch=sketch --json
"""


def diagnose(
    model: Model,
    data: Annotated[
        Path,
        typer.Option(
            help="Images that the model is judged on: CLASS/IMAGE, or images alone, without accuracy.",
            metavar="FOLDER",
        ),
    ],
    checkpoint: Checkpoint = None,
    train_data: Annotated[
        Path | None,
        typer.Option(help="Training images; by them other data is told from old statistics.", metavar="FOLDER"),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            help="Images of one kind, where several go through the model; twice or more.", metavar="NAME=FOLDER"
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of the optimizer since the statistics began, if known.", min=1)
    ] = None,
    batch_size: BatchSize = 32,
    image_size: ImageSize = None,
    mean: Mean = None,
    std: Std = None,
    augment: Augment = "auto",
    limit: Limit = None,
    seed: Seed = 0,
    no_metric: Annotated[
        bool, typer.Option("--no-metric", help="Measure no accuracy; the classes need not fit the model.")
    ] = False,
    device: Device = "auto",
    workers: Workers = 2,
    skip_bad_images: SkipBadImages = False,
    as_json: AsJson = False,
    html: Html = None,
) -> None:
    """Find why a model is worse in eval mode than in train mode, or on this data than on other.

    Each layer's running statistics are tested against what it is given; accuracy is measured under other statistics
    with the same weights, and remedies are ranked by what they did. Nothing is changed. Exit code 1 if the cause is
    any but "healthy".
    """
    domains = domains_of(domain or ())
    check_page(html)
    folders = {"data": ("--data ", data)}
    if train_data is not None:
        folders["training data"] = ("--train-data ", train_data)
    folders.update({f"domain {name}": given for name, given in domains.items()})
    with Passes(ERRORS) as passes:
        from frostline.norms.diagnose import diagnose as diagnose_model

        inputs = Inputs(
            model,
            checkpoint,
            folders,
            labelled=() if no_metric else [name for name in folders if name != "training data"],
            only_if="data",
            instead="--no-metric",
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
        report = diagnose_model(
            inputs.loaded.model,
            inputs.batches("data"),
            "accuracy" if inputs.measurable else None,
            {name: inputs.batches(f"domain {name}") for name in domains} or None,
            train_loader=None if train_data is None else inputs.batches("training data", training=True),
            steps=steps,
            batch_size=batch_size,
            progress=passes.named,
        )
    facts = inputs.facts(["training data"] if train_data is not None else [])
    notes = ()
    if not inputs.measurable and not no_metric:
        notes = (f"{data} has no class folders, so there are no labels to measure accuracy by",)
    if as_json:
        print_json(finite({**report.to_json(), "inputs": inputs.to_json()}))
    else:
        show([*columns(facts), "", report, *notes])
    if html is not None:
        from frostline.report import render_norms

        write_page(html, render_norms(diagnosis_page(report, model, facts, notes)))
        if not as_json:
            show(["", f"report  {html}"])
    if report.cause != "healthy":
        raise typer.Exit(1)
