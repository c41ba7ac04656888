"""``frostline lint``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:  # importing them takes time, and `--help` should not wait for that
    from frostline.cli.lint_run import Work
    from frostline.lint.settings import Settings

# The \b keeps click from joining the lines.
EXAMPLES = """\b
Examples:
  frostline lint
  frostline lint train.py notebooks --select F,M2 --ignore F107
  frostline lint src --fix
  frostline lint src --diff --unsafe-fixes
  frostline lint src --write-baseline known.json
  frostline lint src --baseline known.json
  frostline lint --output-format sarif > lint.sarif

Exit codes: 0 clean, 1 findings, 2 wrong usage, or nothing found and a file could not be linted.
"""

OutputFormat = Literal["concise", "full", "json", "sarif", "github"]


def lint(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files and folders; - is standard input; . by default.", metavar="PATHS")
    ] = None,
    select: Annotated[
        list[str] | None, typer.Option(help="Only these: F101, or M for all that begin so; commas.", metavar="CODES")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Not these.", metavar="CODES")] = None,
    extend_select: Annotated[
        list[str] | None, typer.Option(help="These too, beside those of the settings.", metavar="CODES")
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended safely, in place.")] = False,
    unsafe_fixes: Annotated[
        bool | None,
        typer.Option("--unsafe-fixes/--no-unsafe-fixes", help="With fixes that may change what is computed."),
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show what --fix would change, and write nothing.")] = False,
    output_format: Annotated[
        OutputFormat | None, typer.Option(help="How findings are printed; full by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --output-format json.")] = False,
    statistics: Annotated[bool, typer.Option("--statistics", help="Count the findings of each rule.")] = False,
    baseline: Annotated[
        Path | None, typer.Option(help="Findings in this file are known and do not count.", metavar="FILE")
    ] = None,
    write_baseline: Annotated[
        Path | None, typer.Option(help="Write all findings there, as known, and print none.", metavar="FILE")
    ] = None,
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Exit code 0 also with findings.")] = False,
    exit_non_zero_on_fix: Annotated[
        bool, typer.Option("--exit-non-zero-on-fix", help="Exit code 1 also if all was mended.")
    ] = False,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Globs to leave out, instead of the usual ones.", metavar="GLOBS")
    ] = None,
    extend_exclude: Annotated[list[str] | None, typer.Option(help="Globs to leave out too.", metavar="GLOBS")] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Read every file, and keep no results.")] = False,
    cache_dir: Annotated[Path | None, typer.Option(help="Where results are kept.", metavar="FOLDER")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; as many as pay off by default.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings from this pyproject.toml.", metavar="FILE")] = None,
    isolated: Annotated[bool, typer.Option("--isolated", help="No settings from files.")] = False,
    show_files: Annotated[bool, typer.Option("--show-files", help="Only list the files.")] = False,
    stdin_filename: Annotated[str | None, typer.Option(help="What standard input is called.", metavar="NAME")] = None,
) -> None:
    """Find mistakes in training code, in Python files and notebooks, before anything runs; and mend them.

    A line is left alone with a comment, # noqa: F101. Settings stand in pyproject.toml, [tool.frostline.lint]. What a
    rule looks for, and when it is wrong: frostline rule F101.
    """
    from frostline.cli.lint_print import print_outcome
    from frostline.cli.lint_run import against, exit_code, lint_files, lint_stdin, listed, settings_for, stdin_name
    from frostline.cli.lint_sources import Sources

    wanted = paths or [Path()]
    _check(diff=diff, as_json=as_json, output_format=output_format)
    name = stdin_name(wanted, stdin_filename)
    settings = settings_for(wanted, config=config, isolated=isolated).overridden(
        select=listed("select", select),
        ignore=listed("ignore", ignore),
        extend_select=listed("extend-select", extend_select),
        exclude=listed("exclude", exclude),
        extend_exclude=listed("extend-exclude", extend_exclude),
        baseline=baseline,
        cache_dir=cache_dir,
        output_format="json" if as_json else output_format,
        unsafe_fixes=unsafe_fixes,
    )
    if show_files:
        _show_files(wanted, settings)
        return
    if name is None:
        done = lint_files(wanted, settings, fix=fix or diff, write=not diff, jobs=jobs, cache=not no_cache)
        sources = Sources()
    else:
        data = sys.stdin.buffer.read()
        done = lint_stdin(data, name, settings, fix=fix or diff)
        sources = Sources({name: data if done.content is None else done.content})
    if diff:
        code = _show_diff(done)
    else:
        if write_baseline is not None:
            from frostline.baseline import write_baseline as write

            write(write_baseline, [each.finding for each in done.report.diagnostics])
        outcome = against(done, write_baseline or settings.baseline)
        stream = sys.stdout
        if done.content is not None:
            # The mended source is what standard output is for.
            sys.stdout.flush()
            sys.stdout.buffer.write(done.content)
            sys.stdout.buffer.flush()
            stream = sys.stderr
        print_outcome(
            outcome,
            sources,
            stream,
            output_format=settings.output_format,
            unsafe=settings.unsafe_fixes,
            count=statistics,
            written="" if write_baseline is None else str(write_baseline),
        )
        code = exit_code(outcome, exit_zero=exit_zero, exit_non_zero_on_fix=exit_non_zero_on_fix)
    if code:
        raise typer.Exit(code)


def _check(*, diff: bool, as_json: bool, output_format: str | None) -> None:
    from frostline.errors import FrostlineError

    if as_json and output_format not in (None, "json"):
        raise FrostlineError(
            f"--json and --output-format {output_format}: both say how findings are printed.\n  fix: leave out one"
        )
    document = "--json" if as_json else f"--output-format {output_format}"
    if diff and (as_json or output_format in ("json", "sarif", "github")):
        raise FrostlineError(
            f"--diff and {document}: the one prints a diff, the other a document.\n  fix: leave out one"
        )


def _show_files(paths: list[Path], settings: Settings) -> None:
    """The files that would be linted, one a line; folders that cannot be read are named beside them."""
    from frostline.cli.lint_documents import Outcome
    from frostline.cli.lint_print import print_failures, say
    from frostline.lint.diagnostic import LintReport
    from frostline.lint.discovery import find_files

    files, failures = find_files(paths, settings)
    print_failures(Outcome(LintReport(failures=tuple(failures))))
    say(sys.stdout, (each.name for each in files))


def _show_diff(done: Work) -> int:
    """What would change; the exit code."""
    from frostline.cli.lint_documents import Outcome
    from frostline.cli.lint_print import print_failures, say

    print_failures(Outcome(done.report))
    if not done.diff:
        say(sys.stderr, ["Nothing would change."])
        return 2 if done.report.failures else 0
    say(sys.stdout, done.diff.splitlines())
    number = len(done.fixed)
    say(sys.stderr, [f"{number:,} mistake{'' if number == 1 else 's'} would be fixed."])
    return 1
