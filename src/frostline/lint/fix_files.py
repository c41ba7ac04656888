"""Mends files: makes the fixes that are asked for, lints again, and goes on until there is nothing left to make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from frostline.errors import FrostlineError
from frostline.lint.diagnostic import Diagnostic, Failure, LintReport
from frostline.lint.discovery import find_files
from frostline.lint.fixes import apply_fixes, unified_diff, write_source
from frostline.lint.parsing import parse
from frostline.lint.run import lint_paths, lint_source
from frostline.lint.settings import Settings
from frostline.lint.source import Source, read_source

# One fix can make room for another; what is not done after so many rounds chases its own tail.
_ROUNDS = 10


@dataclass(frozen=True)
class FixReport:
    """What was mended.

    Attributes:
        report: what is left.
        applied: the mistakes that were mended, by file and place as it was before.
        diff: what changed, as a unified difference.
        failures: files that could not be written, or whose fixes were taken back.
    """

    report: LintReport
    applied: tuple[Diagnostic, ...] = ()
    diff: str = ""
    failures: tuple[Failure, ...] = ()


def fix_paths(paths: Sequence[Path], settings: Settings, *, unsafe: bool, write: bool) -> FixReport:
    """Mend files, and the Python files and notebooks in folders.

    Only the edits of fixes are made: comments, formatting, line ends, encodings and permissions stay. A file is
    written whole or not at all, and only if it still parses.

    Args:
        paths: files and folders.
        settings: which rules, and what is left out.
        unsafe: make fixes too that may change what the program computes.
        write: ``False`` changes nothing on the disk, and only tells what would.

    Raises:
        LintSettingsError: a path or rule does not exist.
    """
    report = lint_paths(paths, settings)
    by_file: dict[str, list[Diagnostic]] = {}
    for each in report.diagnostics:
        by_file.setdefault(each.finding.file, []).append(each)
    places = {file.name: file.path for file in find_files(paths, settings)[0]}
    applied: list[Diagnostic] = []
    failures: list[Failure] = []
    diffs: list[str] = []
    left: dict[str, list[Diagnostic]] = dict(by_file)
    for name, found in by_file.items():
        if not any(each.fix is not None for each in found):
            continue
        before = read_source(places[name], name)
        if isinstance(before, Failure):
            failures.append(before)
            continue
        after, made, rest = _mended(before, found, settings, unsafe)
        if not made:
            continue
        if isinstance(parse(after), Failure):
            failures.append(Failure(name, "a fix would make it unparsable: nothing was changed", made[0].finding.line))
            continue
        if write:
            try:
                write_source(places[name], after)
            except FrostlineError as error:
                failures.append(Failure(name, str(error).splitlines()[0]))
                continue
        diffs.append(unified_diff(before, after))
        applied += made
        left[name] = rest
    remaining = tuple(each for name in by_file for each in left[name])
    return FixReport(replace(report, diagnostics=remaining), tuple(applied), "".join(diffs), tuple(failures))


def _mended(
    before: Source, found: list[Diagnostic], settings: Settings, unsafe: bool
) -> tuple[Source, list[Diagnostic], list[Diagnostic]]:
    """A source with its fixes made, what was mended, and what is left."""
    source, applied = before, list[Diagnostic]()
    for _ in range(_ROUNDS):
        changed, made = apply_fixes(source, found, unsafe=unsafe)
        if not made:
            break
        again = lint_source(changed.to_bytes(), changed.path, settings)
        if again.failures:
            break
        source, found = changed, list(again.diagnostics)
        applied += made
    return source, applied, found
