"""``frostline doctor``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from frostline.cli.console import ERRORS, FIRST_PROCESS, OUTPUT, print_json
from frostline.cli.norm_inputs import Html, check_page, write_page

if TYPE_CHECKING:
    from frostline.baseline import Baseline, Split
    from frostline.doctor import Examination
    from frostline.doctor.script import ScriptRun

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline doctor train.py --epochs 1 --data images
  frostline doctor --steps 50 --html doctor.html train.py
  frostline doctor --frozen backbone --apply train.py
  frostline doctor --module package.train --config small.yaml
  torchrun --nproc-per-node 2 --no-python frostline doctor train.py

What stands behind SCRIPT belongs to the script.
"""

# Behind the script everything is the script's.
CONTEXT = {"allow_interspersed_args": False}

FailOn = Literal["error", "warning", "info", "never"]


def doctor(
    script: Annotated[str, typer.Argument(help="The training script; with --module, a module.", metavar="SCRIPT")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its own arguments.", metavar="ARGS")] = None,
    steps: Annotated[int, typer.Option(min=0, help="Optimizer steps to watch; 0 watches to the end.")] = 20,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Let the script go on to its end, unwatched, after these steps.")
    ] = False,
    module: Annotated[bool, typer.Option("--module", "-m", help="SCRIPT is a module, as for python -m.")] = False,
    frozen: Annotated[
        list[str] | None,
        typer.Option(help="This part must stay: a glob on dotted paths; again for more.", metavar="SELECTOR"),
    ] = None,
    moving: Annotated[
        list[str] | None, typer.Option(help="This part may move all the same.", metavar="SELECTOR")
    ] = None,
    eval_: Annotated[
        list[str] | None, typer.Option("--eval", help="This part must stay in eval mode.", metavar="SELECTOR")
    ] = None,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="Then do the remedies that are safe in memory, and watch as many steps again."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    sarif: Annotated[Path | None, typer.Option(help="Write SARIF 2.1.0 here.", metavar="FILE")] = None,
    html: Html = None,
    baseline: Annotated[
        Path | None, typer.Option(help="Findings in this file are known and do not count.", metavar="FILE")
    ] = None,
    write_baseline: Annotated[
        Path | None, typer.Option(help="Write all findings of this run there, as known.", metavar="FILE")
    ] = None,
    fail_on: Annotated[FailOn, typer.Option(help="The mildest finding that gives exit code 1.")] = "warning",
    trace: Annotated[
        bool, typer.Option("--trace/--no-trace", help="Whether one step may be looked at operator by operator.")
    ] = True,
) -> None:
    """Run a training script as it is, watch its first steps, and say what is wrong, on which line, and what mends it.

    The script is not changed, and what it computes stays equal to the bit. What must stay is taken from what it does:
    requires_grad and modes at its first training step, holds, and what its optimizers own. Exit code 1 if there are
    findings, if the script fails, or if nothing in it trains.
    """
    check_page(html)
    from frostline.audit.contract import Contract
    from frostline.baseline import read_baseline
    from frostline.doctor.script import run_script

    known = None if baseline is None else read_baseline(baseline)
    declared = (tuple(frozen or ()), tuple(moving or ()), tuple(eval_ or ()))
    show = _Shown(as_json=as_json, sarif=sarif, html=html, known=known, write_baseline=write_baseline, fail_on=fail_on)
    with _own_output(as_json) as restore:

        def give_up(run: ScriptRun) -> None:
            restore()
            show(run)

        run = run_script(
            script,
            arguments or [],
            steps=steps,
            keep_going=keep_going,
            apply=apply,
            as_module=module,
            contract=Contract(*declared) if any(declared) else None,
            trace=trace,
            give_up=give_up,
        )
    code = show(run)
    for line in _advice(script, arguments or [], run):
        ERRORS.print(line, markup=False, highlight=False, soft_wrap=True)
    if code:
        raise typer.Exit(code)


# What a script hardly has an option of its own for.
_OURS = (
    "--apply",
    "--baseline",
    "--fail-on",
    "--frozen",
    "--html",
    "--keep-going",
    "--moving",
    "--no-trace",
    "--sarif",
    "--write-baseline",
)


def _advice(script: str, arguments: list[str], run: ScriptRun) -> list[str]:
    """What the call may have meant, where it seems to have meant something else."""
    lines: list[str] = []
    ours = [name for name in _OURS if any(given == name or given.startswith(f"{name}=") for given in arguments)]
    if ours:
        stand = "stands" if len(ours) == 1 else "stand"
        lines.append(f"note: {', '.join(ours)} {stand} behind {script}: the script got it\n  fix: put it in front")
    crash, path = run.seen.crash, Path(script)
    if crash is not None and crash.type == "ImportError" and "relative import" in crash.text:
        names = [path.stem]
        for folder in path.resolve().parents:
            if not (folder / "__init__.py").is_file():
                break
            names.insert(0, folder.name)
        if len(names) > 1:
            lines.append(f"note: {script} belongs to a package\n  fix: frostline doctor -m {'.'.join(names)}")
    return lines


class _Shown:
    """Shows what came of a script, everywhere it was asked for."""

    def __init__(
        self,
        *,
        as_json: bool,
        sarif: Path | None,
        html: Path | None,
        known: Baseline | None,
        write_baseline: Path | None,
        fail_on: FailOn,
    ) -> None:
        self._as_json, self._sarif, self._html = as_json, sarif, html
        self._known, self._write_baseline, self._fail_on = known, write_baseline, fail_on

    def __call__(self, run: ScriptRun) -> int:
        """Show it; the exit code."""
        from frostline.baseline import write_baseline

        examination = run.examination
        split = None if self._known is None else self._known.split(examination)
        if FIRST_PROCESS:
            if self._as_json:
                print_json(_as_json(run, split))
            else:
                from frostline.cli.doctor_text import print_examination

                print_examination(OUTPUT, examination, earlier=run.earlier, split=split)
                for line in run.applied:
                    OUTPUT.print(f"done in memory  {line}", markup=False, highlight=False, soft_wrap=True)
            self._write_files(examination, run.earlier, split)
            if self._write_baseline is not None:
                write_baseline(self._write_baseline, examination)
        return self._exit_code(run, split)

    def _write_files(self, examination: Examination, earlier: Examination | None, split: Split | None) -> None:
        if self._html is not None:
            from frostline.cli.doctor_pages import doctor_page
            from frostline.report.doctor_page import render_doctor

            write_page(self._html, render_doctor(doctor_page(examination, earlier=earlier, split=split)))
        if self._sarif is not None:
            from frostline.cli.doctor_pages import doctor_sarif
            from frostline.durable import replace_file, told

            known = None if split is None else split.known
            content = doctor_sarif(examination, known=known).encode()
            with told(self._sarif, len(content), "  fix: free some space, or leave out --sarif"):
                replace_file(self._sarif, content)

    def _exit_code(self, run: ScriptRun, split: Split | None) -> int:
        from frostline.findings import Severity

        if not run.is_complete:
            return 1
        if self._fail_on == "never":
            return 0
        bad = run.examination.worse_than(Severity(self._fail_on))
        return 1 if any(split is None or finding in split.new for finding in bad) else 0


def _as_json(run: ScriptRun, split: Split | None) -> dict[str, object]:
    told = run.examination.to_json()
    told["applied"] = run.applied
    told["before"] = None if run.earlier is None else run.earlier.to_json()["findings"]
    if split is not None:
        new = set(split.new)
        rows = zip(told["findings"], run.examination, strict=True)
        told["findings"] = [row | {"known": finding not in new} for row, finding in rows]
        told["gone"] = [vars(one) for one in split.gone]
    return told


@contextmanager
def _own_output(ours: bool) -> Generator[Callable[[], None]]:
    """Where standard output is for our result alone, what the script and its children print goes to standard error."""
    if not ours:
        yield lambda: None
        return
    sys.stdout.flush()
    # The file itself for what children write, the object for what Python does.
    kept, stdout = os.dup(1), sys.stdout
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    done: list[bool] = []

    def restore() -> None:
        if not done:
            done.append(True)
            sys.stdout.flush()
            sys.stdout = stdout
            os.dup2(kept, 1)
            os.close(kept)

    try:
        yield restore
    finally:
        restore()
