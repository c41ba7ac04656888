"""``frostline finetune``."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.cli.completion import among, models
from frostline.cli.console import ERRORS, OUTPUT, Live, count, print_json, say
from frostline.errors import FrostlineError, name_some

if TYPE_CHECKING:
    from frostline.finetune import RunResult
    from frostline.tasks import IsolationReport

MOST_ROWS = 9
# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline finetune
  frostline finetune --data photos --model timm/resnet18 --pretrained
  frostline finetune --data photos --model timm/resnet18 --freeze '!layer4'
  frostline finetune --data photos --model timm/resnet18 --strategy gradual
  frostline finetune --model timm/resnet18 --task kind=a.csv --task sex=b.csv
  frostline finetune --resume runs/finetune-1
"""


def finetune(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(
            help="Image folder: train/CLASS/* and val/CLASS/*, or CLASS/*. Without it: scikit-learn's digits.",
            metavar="FOLDER",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="timm/NAME, torchvision/NAME or package.module:factory.", metavar="MODEL", autocompletion=models
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            help="What of the trunk is held: a glob on dotted paths, '!' leaves out. All by default; may be repeated.",
            metavar="SELECTOR",
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="Dotted path of the model's classifier, if it is not found.", metavar="NAME")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="One more head on the same trunk, from a CSV file with the columns image,label[,split]. Each image is "
            "read once for all heads; may be repeated.",
            metavar="NAME=LABELS.csv",
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="With --task: stop a head after so many epochs without a better accuracy.", metavar="EPOCHS"),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="What trains: the new head (and what --freeze leaves, if given), the full model, both at "
            "discriminative rates (the trunk a tenth), gradual unfreezing from the head down, or probe-then-tune.",
            metavar="head|full|discriminative|gradual|probe-then-tune",
            autocompletion=among("head|full|discriminative|gradual|probe-then-tune"),
        ),
    ] = "head",
    lr_schedule: Annotated[
        str,
        typer.Option(
            help="What becomes of the rates over the run.",
            metavar="constant|cosine",
            autocompletion=among("constant|cosine"),
        ),
    ] = "constant",
    epochs: Annotated[int, typer.Option(help="How often the data is gone through.")] = 8,
    lr: Annotated[float, typer.Option(help="Learning rate of AdamW, for the new head.")] = 2e-3,
    batch_size: Annotated[int, typer.Option(help="Samples a step, over all processes together.")] = 32,
    seed: Annotated[int, typer.Option(help="Of split, initialization, order and augmentation.")] = 0,
    init: Annotated[
        str | None, typer.Option(help="Checkpoint to start from; never run as code.", metavar="CHECKPOINT")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Fetch the published weights.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/finetune-N by default.", metavar="FOLDER")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.", metavar="FOLDER")] = None,
    naive: Annotated[
        bool | None,
        typer.Option("--naive/--no-naive", help="Also train the naive way and compare; for the digits by default."),
    ] = None,
    skip_bad_images: Annotated[
        bool, typer.Option("--skip-bad-images", help="Leave out images that cannot be read, and count them.")
    ] = False,
    val_share: Annotated[float, typer.Option(help="Share that validates, where there is no val folder.")] = 0.2,
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 2,
    views: Annotated[
        int | None,
        typer.Option(
            help="Draws of the augmentation, which epochs go through in turn. By default as many as epochs, but at "
            "most 8 where the head alone trains.",
            metavar="N",
        ),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Compute the features of the frozen prefix once a sample and view, where the head alone trains.",
        ),
    ] = True,
    cache_folder: Annotated[
        str | None,
        typer.Option(
            help="Keep them in this folder, for other runs too; by default in the run folder, until it is done.",
            metavar="FOLDER",
        ),
    ] = None,
    rebuild_cache: Annotated[
        bool,
        typer.Option("--rebuild-cache", help="Replace what --cache-folder holds if it was made of something else."),
    ] = False,
    prefix: Annotated[
        list[str] | None,
        typer.Option(
            help="Compute the frozen prefix in a quicker way, which differs by rounding; may be repeated. By default "
            "to the bit as the model does.",
            metavar="folded|channels_last|compiled|bfloat16",
            autocompletion=among("folded|channels_last|compiled|bfloat16"),
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
) -> None:
    """Train a new head, hold the rest, and prove to the bit that the rest did not move.

    Without arguments: a small network learns handwritten digits, then a second head learns even or odd on the
    negatives of the images with trunk and first head held; then the same is done the naive way, for comparison.
    """
    from frostline import finetune as room
    from frostline.cli.finetune_tasks import finetune_tasks, refuse_to_resume_tasks
    from frostline.finetune.lost_process import termination_told

    settings: dict[str, Any] = {
        "data": data,
        "model": model,
        "freeze": tuple(freeze or ()),
        "head": head,
        "strategy": strategy,
        "lr_schedule": lr_schedule,
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "seed": seed,
        "init": init,
        "pretrained": pretrained,
        "device": device,
        "skip_bad_images": skip_bad_images,
        "naive": naive,
        "workers": workers,
        "val_share": val_share,
        "views": views,
        "use_cache": cache,
        "cache": cache_folder,
        "rebuild_cache": rebuild_cache,
        "prefix": tuple(prefix or ()),
    }
    if task and resume is None:
        finetune_tasks(task, settings, patience=patience, out=out, as_json=as_json)
        return
    if resume is None:
        _refuse_contradiction(context, freeze)
    if patience is not None and resume is None:
        raise FrostlineError("--patience is for heads that train with --task\n  fix: leave it out, or add --task")
    try:
        with termination_told(), Live(ERRORS if as_json else OUTPUT) as live:
            if resume is None:
                config = room.FinetuneConfig(**settings)
                result = room.run(config, out, progress=live)
            else:
                _refuse_beside_resume(context, resume, {"resume", "device", "as_json"})
                refuse_to_resume_tasks(resume)
                result = room.resume(resume, device=device if _is_given(context, "device") else None, progress=live)
    except KeyboardInterrupt as stop:
        folder = getattr(stop, "folder", None)
        if folder is None:
            told = "stopped before there was anything to resume"
        else:
            told = (
                f"stopped; from the last checkpoint it goes on with: frostline finetune --resume {quote(str(folder))}"
            )
        ERRORS.print(told, soft_wrap=True, markup=False, highlight=False)
        raise typer.Exit(130) from None
    if as_json:
        print_json(result.to_json())
    else:
        _show(result)
    if not result.report.isolated:
        raise typer.Exit(1)


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was given, be it with its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _refuse_beside_resume(context: typer.Context, resume: Path, allowed: set[str]) -> None:
    """A run goes on with the settings it began with; others beside ``--resume`` would be silently ignored."""
    given = [
        f"--{name.replace('_', '-')}" for name in context.params if name not in allowed and _is_given(context, name)
    ]
    if given:
        raise FrostlineError(
            f"--resume takes its settings from the run's config.json, but {name_some(given)} was given too.\n"
            "  fix: leave that out, or start a new run without --resume; for a longer run or another one from the same "
            f"model: --init {quote(str(resume))}, with the --data and --model of that run"
        )


def _refuse_contradiction(context: typer.Context, freeze: list[str] | None) -> None:
    """``--strategy head`` is the default, under which --freeze says what is held; asked for, it says another thing."""
    asked = _is_given(context, "strategy") and context.params["strategy"] == "head"
    if asked and freeze and "*" not in freeze:
        raise FrostlineError(
            f"--strategy head with --freeze {' --freeze '.join(freeze)}: the one trains the new head alone, with the "
            "other what it leaves of the trunk trains too.\n"
            "  fix: leave out --freeze to train the head alone, or --strategy head to train the rest of the trunk too"
        )


def _show(result: RunResult) -> None:
    from frostline.report import spent_line

    lines = ["", *_told(result), "", f"time         {spent_line(result.spent())}", f"run folder   {result.folder}"]
    lines.append(f"load it      {result.loading()}")
    if result.page is not None:
        lines.append(f"report       {result.page}")
    say(*lines)


def _told(result: RunResult) -> list[str]:
    report, rows = result.report, result.last_rows()
    last = rows[report.task]
    lines = [f"{report.task}: accuracy {last.accuracy:.2%} after {count(last.epochs, 'epoch')}"]
    lines += _of_heads(report)
    moved = len(report.diff.moved)
    lines.append(
        f"held: {report.held - moved:,} of {report.held:,} state entries equal to the bit"
        + (f"; moved: {name_some(report.diff.paths)}" if moved else "")
    )
    if result.naive is not None:
        naive = result.naive
        lines += ["", "the same phase with requires_grad=False and model.train():"]
        lines += _of_heads(naive)
        roles = ", ".join(f"{len(group)} {role}" for role, group in naive.diff.by_role().items())
        lines.append(f"moved: {len(naive.diff.moved):,} of {naive.held:,} tensors that should have stayed ({roles})")
        lines += [f"  {row.path}  largest change {row.max_abs:.3g}" for row in naive.diff.moved[:MOST_ROWS]]
        if len(naive.diff.moved) > MOST_ROWS:
            lines.append(f"  (+{len(naive.diff.moved) - MOST_ROWS} more; certificate.json)")
    return lines


def _of_heads(report: IsolationReport) -> list[str]:
    lines: list[str] = []
    for head in report.heads:
        if head.trained:
            continue
        logits = "equal to the bit" if head.logits_equal else f"changed by up to {head.logits_max_abs:.3g}"
        line = f"{head.name}: logits {logits}"
        if head.metric_before is not None:
            line = (
                f"{head.name}: accuracy {head.metric_before:.2%} before, {head.metric_after:.2%} after; logits {logits}"
            )
        if head.predictions_changed:
            line += f", {count(head.predictions_changed, 'prediction')} changed"
        lines.append(line)
    return lines
