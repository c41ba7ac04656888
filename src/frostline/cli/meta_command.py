"""``frostline meta``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from frostline.cli.completion import among
from frostline.cli.console import ERRORS, FIRST_PROCESS, OUTPUT, Table, print_json, say
from frostline.cli.meta_progress import MetaLive
from frostline.errors import FrostlineError, MissingExtra, name_some

if TYPE_CHECKING:
    from frostline.meta.evaluate import Evaluation
    from frostline.runs.run_folder import RunFolder

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline meta --demo
  frostline meta --data omniglot --way 5 --shot 1 --policy support --out runs/support
  frostline meta --data omniglot --preset higher
  frostline meta --resume runs/support
  frostline meta policies --run runs/support --policies batch,support,population
"""
# All that stand by themselves; importing them would import torch.
POLICIES = "batch|support|running|population|frozen|per_step|task_norm_l|task_norm_i|instance|layer|reptile"
DEMO: dict[str, Any] = {
    "queries": 5,
    "inner_lr": 0.1,
    "steps": 3,
    "iterations": 150,
    "meta_batch": 4,
    "lr": 5e-3,
    "width": 24,
    "eval_tasks": 200,
    "validate_tasks": 20,
}

app = typer.Typer(
    invoke_without_command=True, no_args_is_help=False, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.callback(epilog=EXAMPLES)
def meta(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Option(
            help="Omniglot's archives, as they are or unpacked, or images in class folders; found by looking.",
            metavar="FOLDER",
        ),
    ] = None,
    demo: Annotated[
        bool, typer.Option("--demo", help="Scikit-learn's digits, under a minute, then every policy.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Published settings; options given beside it win.",
            metavar="higher|cbfinn-5way-1shot|...",
            autocompletion=among("higher|cbfinn-5way-1shot|cbfinn-20way-1shot"),
        ),
    ] = None,
    way: Annotated[int | None, typer.Option(help="Classes in a task; 5 by default.")] = None,
    shot: Annotated[int | None, typer.Option(help="Labelled images of each; 1 by default.")] = None,
    queries: Annotated[int | None, typer.Option(help="Query images of each, in training; 15 by default.")] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help="How it learns; maml by default.",
            metavar="maml|fomaml|anil|reptile|proto",
            autocompletion=among("maml|fomaml|anil|reptile|proto"),
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Which statistics batch norm uses: batch, support, running, population, frozen, per_step, "
            "task_norm_l, task_norm_i, instance, layer, reptile, or INNER/QUERY; batch by default.",
            metavar="POLICY",
            autocompletion=among(POLICIES),
        ),
    ] = None,
    inner_lr: Annotated[
        float | None, typer.Option(help="Rate of the inner steps; 0.4 by default, 0.001 for reptile.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Inner steps of training; 5 by default.")] = None,
    iterations: Annotated[int | None, typer.Option(help="Steps of the outer optimizer; 1000 by default.")] = None,
    meta_batch: Annotated[int | None, typer.Option(help="Tasks in each; 16 by default.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Rate of the outer optimizer; 0.001 by default, 1 for reptile.")
    ] = None,
    order: Annotated[
        int | None, typer.Option(help="2, or 1 for a first-order gradient; the algorithm's by default.")
    ] = None,
    learn_rates: Annotated[
        str | None,
        typer.Option(
            help="Learn the rates of the inner steps; 'no' by default.",
            metavar="no|parameter|layer_step",
            autocompletion=among("no|parameter|layer_step"),
        ),
    ] = None,
    multi_step: Annotated[
        int | None,
        typer.Option(help="Use the query losses of all steps, moving to the last over N iterations.", metavar="N"),
    ] = None,
    checkpoint_steps: Annotated[
        bool | None, typer.Option("--checkpoint-steps", help="Less memory, more time, the same gradient.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="conv4, conv3 (of higher's example), or conv2 for small images; by default what fits the images.",
            metavar="conv4|conv3|conv2",
            autocompletion=among("conv4|conv3|conv2"),
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Channels of the network; 64 by default.")] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Height and width of images; by default 28 for Omniglot, and 84 for a folder."),
    ] = None,
    resample: Annotated[
        str | None,
        typer.Option(
            help="Which filter resizes; by default lanczos for Omniglot, and bilinear for a folder.",
            metavar="nearest|box|bilinear|bicubic|lanczos",
            autocompletion=among("nearest|box|bilinear|bicubic|lanczos"),
        ),
    ] = None,
    invert: Annotated[
        bool | None, typer.Option("--invert/--no-invert", help="Of Omniglot, strokes are 1, as by default, or 0.")
    ] = None,
    rotations: Annotated[
        str | None,
        typer.Option(
            help="Rotations as classes of their own, as by default, or none.",
            metavar="classes|none",
            autocompletion=among("classes|none"),
        ),
    ] = None,
    splits: Annotated[
        str | None, typer.Option(help="Stored splits, such as RUN/splits.json; drawn by default.", metavar="FILE")
    ] = None,
    on_nonfinite: Annotated[
        str | None,
        typer.Option(
            help="At a task that is NaN or blows up; stop by default.",
            metavar="stop|skip",
            autocompletion=among("stop|skip"),
        ),
    ] = None,
    eval_tasks: Annotated[int | None, typer.Option(help="Tasks of the evaluation; 600 by default.")] = None,
    eval_steps: Annotated[int | None, typer.Option(help="Inner steps there; as in training by default.")] = None,
    validate_every: Annotated[
        int | None, typer.Option(help="Iterations between validations; a tenth of the run by default.")
    ] = None,
    validate_tasks: Annotated[int | None, typer.Option(help="Tasks of each; 100 by default.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Iterations between checkpoints; 50 by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of splits, weights and tasks; 0 by default.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Tasks at a time; as many as PyTorch has threads by default.")
    ] = None,
    vmap: Annotated[bool | None, typer.Option("--vmap", help="All tasks in one batched pass, for GPUs.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps; cpu by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/meta-N by default.", metavar="FOLDER")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.", metavar="FOLDER")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON and nothing else.")] = False,
) -> None:
    """Train a few-shot learner, and measure it transductively and inductively.

    Without a command: trains. The run folder holds metrics.jsonl, checkpoints, model.safetensors, results.json and
    report.html, and can be resumed to the same result after any kill.
    """
    settings: dict[str, Any] = {
        "data": data,
        "way": way,
        "shot": shot,
        "queries": queries,
        "algorithm": algorithm,
        "policy": policy,
        "inner_lr": inner_lr,
        "steps": steps,
        "iterations": iterations,
        "meta_batch": meta_batch,
        "lr": lr,
        "order": order,
        "learn_rates": learn_rates,
        "multi_step": multi_step,
        "checkpoint_steps": checkpoint_steps,
        "network": network,
        "width": width,
        "size": size,
        "resample": resample,
        "invert": invert,
        "rotations": rotations,
        "splits": splits,
        "on_nonfinite": on_nonfinite,
        "eval_tasks": eval_tasks,
        "eval_steps": eval_steps,
        "validate_every": validate_every,
        "validate_tasks": validate_tasks,
        "checkpoint_every": checkpoint_every,
        "seed": seed,
        "threads": threads,
        "vmap": vmap,
        "device": device,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if context.invoked_subcommand is not None:
        beside = [f"--{name.replace('_', '-')}" for name in given]
        if beside:
            command = context.invoked_subcommand
            raise FrostlineError(
                f"{name_some(beside)} before {command!r} is about training\n  fix: leave it out, or give it to "
                f"frostline meta without {command}"
            )
        return
    from frostline.meta.presets import DIFFERS
    from frostline.meta.presets import preset as settings_of
    from frostline.meta.run import resume as resume_run
    from frostline.meta.run import train
    from frostline.meta.run_settings import MetaConfig

    try:
        with MetaLive(ERRORS if as_json else OUTPUT) as live:
            if resume is not None:
                beside = [f"--{name}" for name, on in (("demo", demo), ("preset", preset), ("out", out)) if on]
                if beside:
                    raise FrostlineError(
                        f"--resume goes on with the run in its folder, but {name_some(beside)} was given too\n"
                        "  fix: leave that out, or start a new run without --resume"
                    )
                result = resume_run(resume, asked=given, progress=live)
            else:
                _refuse_unclear(data, demo)
                published = {} if preset is None else dict(settings_of(preset))
                if preset is not None:
                    told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in published.items())
                    live.say(f"preset {preset}: {told}; {DIFFERS[preset]}")
                result = train(MetaConfig(**{**(DEMO if demo else {}), **published, **given}), out, progress=live)
            table: dict[str, Any] = {}
            compared = None
            if demo and FIRST_PROCESS:
                from frostline.meta.run_policies import evaluate_policies

                tasks = result.config.eval_tasks
                compared = evaluate_policies(result.folder, tasks=tasks, threads=threads, progress=live)
                table = {"policies": compared.results}
            page = _write_page(result.folder, live)
    except KeyboardInterrupt:
        ERRORS.print("stopped; --resume with the run folder goes on from the last checkpoint", soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json({**result.results, **table, "folder": str(result.folder), "report": page and str(page)})
        return
    _show(["", *_rows(result.evaluation), ""])
    if compared is not None:
        _show(["the same net under every policy:", "", *_rows(compared.evaluation), ""])
    _show([_conditions(result.evaluation, "results.json"), "", f"run folder   {result.folder}"])
    if page is not None:
        _show([f"report       {page}"])


@app.command("policies")
def policies(
    run: Annotated[Path, typer.Option(help="Folder of a finished run.", metavar="RUN")],
    policies: Annotated[
        str | None,
        typer.Option(help="Names or INNER/QUERY, with commas; by default all that the net can have.", metavar="A,B,C"),
    ] = None,
    tasks: Annotated[int, typer.Option(help="Tasks of the test split, the same for each.")] = 600,
    threads: Annotated[
        int | None, typer.Option(help="Tasks at a time; as many as PyTorch has threads by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON and nothing else.")] = False,
) -> None:
    """Evaluate one trained net under every statistics policy.

    The statistics of the population are measured first. A policy under which adapting blows up is a row that says so.
    Writes RUN/policies.json and the report anew, and nothing else.
    """
    from frostline.meta.run_policies import evaluate_policies

    names = None if policies is None else [name.strip() for name in policies.split(",") if name.strip()]
    try:
        with MetaLive(ERRORS if as_json else OUTPUT) as live:
            found = evaluate_policies(run, policies=names, tasks=tasks, threads=threads, progress=live)
            page = _write_page(found.folder, live)
    except KeyboardInterrupt:
        ERRORS.print("stopped; the table was not written anew", soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json({**found.results, "folder": str(found.folder), "report": page and str(page)})
        return
    _show(["", *_rows(found.evaluation), ""])
    _show([f"left out: {reason}" for reason in found.left_out.values()])
    _show([_conditions(found.evaluation, "policies.json")])
    if page is not None:
        _show(["", f"report       {page}"])


def _refuse_unclear(data: str | None, demo: bool) -> None:
    if data is None and not demo:
        raise FrostlineError("which data?\n  fix: --data FOLDER with Omniglot or class folders of images, or --demo")
    if data is not None and demo:
        raise FrostlineError("--demo has data of its own, but --data was given too\n  fix: leave out one of them")


def _write_page(path: Path, live: MetaLive) -> Path | None:
    if not FIRST_PROCESS:
        return None
    from frostline.cli.meta_pages import write_meta_page
    from frostline.runs.run_folder import RunFolder

    folder: RunFolder = RunFolder.open(path)
    try:
        return write_meta_page(folder)
    except MissingExtra as error:
        live.say(f"report.html was not written: {error}")
        return None


def _rows(evaluation: Evaluation) -> list[object]:
    lines = [[row.policy, row.kind, str(row.queries), row.shown] for row in evaluation.rows]
    reasons = {row.policy: row.why for row in evaluation.rows if row.why}
    table = Table(["statistics", "kind", "queries", "accuracy"], lines)
    return [table, *(f"{policy}: {why}" for policy, why in reasons.items())]


def _conditions(evaluation: Evaluation, file: str) -> str:
    found = evaluation.conditions
    tasks = found["tasks"][0]
    facts = [
        f"{found['count']} tasks of {found['split']!r}",
        f"{tasks['way']}-way {tasks['shot']}-shot",
        f"steps at test {found['steps_at_test']}",
        f"seed {tasks['seed']}",
        f"rotations {tasks['data']['rotations']}",
    ]
    return f"conditions: {', '.join(facts)}; all in {file}"


def _show(lines: Sequence[object]) -> None:
    say(*lines)
