"""``frostline lint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from frostline.cli.completion import codes

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
        list[str] | None,
        typer.Option(
            help="Only these: F101, or M for all that begin so; commas.", metavar="CODES", autocompletion=codes
        ),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Not these.", metavar="CODES", autocompletion=codes)] = None,
    extend_select: Annotated[
        list[str] | None,
        typer.Option(help="These too, beside those of the settings.", metavar="CODES", autocompletion=codes),
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
    given = locals()
    from frostline.cli.lint_job import run_lint
    from frostline.cli.lint_options import LintOptions

    code = run_lint(LintOptions(**given))
    if code:
        raise typer.Exit(code)
