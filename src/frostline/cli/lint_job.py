"""``frostline lint`` once its command line is read: does what was asked for, prints it, and gives the exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from frostline.cli.lint_documents import Outcome
from frostline.cli.lint_options import LintOptions
from frostline.cli.lint_print import DOCUMENTS, print_failures, print_outcome, say
from frostline.cli.lint_run import (
    Work,
    against,
    exit_code,
    lint_files,
    lint_stdin,
    listed,
    settings_for,
    stdin_name,
)
from frostline.cli.lint_sources import Sources
from frostline.errors import FrostlineError
from frostline.lint.diagnostic import LintReport
from frostline.lint.settings import Settings


def run_lint(options: LintOptions) -> int:
    """Lint, mend and print as asked for.

    Args:
        options: the command line.

    Returns:
        The exit code.

    Raises:
        FrostlineError: it cannot be done.
    """
    _check(options)
    paths = options.paths or [Path()]
    name = stdin_name(paths, options.stdin_filename)
    settings = _settings(options, paths)
    if options.show_files:
        _show_files(paths, settings)
        return 0
    mends = options.fix or options.diff
    if name is None:
        sources = Sources()
        work = lint_files(
            paths, settings, fix=mends, write=not options.diff, jobs=options.jobs, cache=not options.no_cache
        )
    else:
        data = sys.stdin.buffer.read()
        work = lint_stdin(data, name, settings, fix=mends)
        sources = Sources({name: data if work.content is None else work.content})
    return _show_diff(work) if options.diff else _show(work, sources, settings, options)


def _settings(options: LintOptions, paths: Sequence[Path]) -> Settings:
    return settings_for(paths, config=options.config, isolated=options.isolated).overridden(
        select=listed("select", options.select),
        ignore=listed("ignore", options.ignore),
        extend_select=listed("extend-select", options.extend_select),
        exclude=listed("exclude", options.exclude),
        extend_exclude=listed("extend-exclude", options.extend_exclude),
        baseline=options.baseline,
        cache_dir=options.cache_dir,
        output_format="json" if options.as_json else options.output_format,
        unsafe_fixes=options.unsafe_fixes,
    )


def _show(work: Work, sources: Sources, settings: Settings, options: LintOptions) -> int:
    """Print what came of it; the exit code."""
    if options.write_baseline is not None:
        from frostline.baseline import write_baseline

        write_baseline(options.write_baseline, [each.finding for each in work.report.diagnostics])
    outcome = against(work, options.write_baseline or settings.baseline)
    stream = sys.stdout
    if work.content is not None:
        # The mended source is what standard output is for.
        sys.stdout.flush()
        sys.stdout.buffer.write(work.content)
        sys.stdout.buffer.flush()
        stream = sys.stderr
    print_outcome(
        outcome,
        sources,
        stream,
        output_format=settings.output_format,
        unsafe=settings.unsafe_fixes,
        count=options.statistics,
        written="" if options.write_baseline is None else str(options.write_baseline),
    )
    return exit_code(outcome, exit_zero=options.exit_zero, exit_non_zero_on_fix=options.exit_non_zero_on_fix)


def _check(options: LintOptions) -> None:
    """Refuse what contradicts itself."""
    output_format = options.output_format
    if options.as_json and output_format not in (None, "json"):
        raise FrostlineError(
            f"--json and --output-format {output_format}: both say how findings are printed.\n  fix: leave out one"
        )
    document = "--json" if options.as_json else f"--output-format {output_format}"
    if options.diff and (options.as_json or output_format in DOCUMENTS):
        raise FrostlineError(
            f"--diff and {document}: the one prints a diff, the other a document.\n  fix: leave out one"
        )


def _show_files(paths: Sequence[Path], settings: Settings) -> None:
    """The files that would be linted, one a line; folders that cannot be read are named beside them."""
    from frostline.lint.discovery import find_files

    files, failures = find_files(paths, settings)
    print_failures(Outcome(LintReport(failures=tuple(failures))))
    say(sys.stdout, (each.name for each in files))


def _show_diff(work: Work) -> int:
    """Print what would change; the exit code."""
    print_failures(Outcome(work.report))
    if not work.diff:
        say(sys.stderr, ["Nothing would change."])
        return 2 if work.report.failures else 0
    say(sys.stdout, work.diff.splitlines())
    number = len(work.fixed)
    say(sys.stderr, [f"{number:,} mistake{'' if number == 1 else 's'} would be fixed."])
    return 1
