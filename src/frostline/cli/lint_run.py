"""What ``frostline lint`` does before it prints: settings, files or standard input, fixes, and the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from frostline.cli.lint_documents import Outcome
from frostline.errors import FrostlineError
from frostline.lint.diagnostic import Diagnostic, LintReport
from frostline.lint.settings import Settings, read_settings, read_settings_file

if TYPE_CHECKING:
    from frostline.lint.fix_files import FixReport

STDIN = "-"


@dataclass(frozen=True)
class Work:
    """What was done.

    Attributes:
        report: what was found, or what is left of it after fixes.
        fixed: what was mended, or would be.
        diff: what changed, or would.
        content: all of standard input after fixes; ``None`` where files were linted, or nothing is mended.
    """

    report: LintReport
    fixed: tuple[Diagnostic, ...] = ()
    diff: str = ""
    content: bytes | None = None


def lint_files(
    paths: Sequence[Path], settings: Settings, *, fix: bool, write: bool, jobs: int | None, cache: bool
) -> Work:
    """Lint files, and mend them where that is asked for.

    Args:
        paths: files and folders.
        settings: which rules run, where, and whether unsafe fixes are wanted.
        fix: whether what can be mended is.
        write: whether the files change then.
        jobs: how many processes; as many as pay off by default.
        cache: whether results are kept, and taken from where they were.

    Raises:
        LintSettingsError: a path or a rule does not exist.
    """
    if not fix:
        from frostline.lint.run import lint_paths

        return Work(lint_paths(paths, settings, jobs=jobs, cache=cache))
    from frostline.lint.fix_files import fix_paths

    done = fix_paths(paths, settings, unsafe=settings.unsafe_fixes, write=write, jobs=jobs, cache=cache)
    return Work(_with_all_failures(done), done.applied, done.diff)


def listed(option: str, given: Sequence[str] | None) -> list[str]:
    """What was given one by one, behind commas, or both; nothing where the option was not given.

    Args:
        option: its name, without dashes.
        given: its values.

    Raises:
        FrostlineError: it was given and says nothing.

    Example:
        >>> listed("select", ["F101,M2", " N "]), listed("select", None)
        (['F101', 'M2', 'N'], [])
    """
    found = [piece.strip() for part in given or () for piece in part.split(",") if piece.strip()]
    if given and not found:
        raise FrostlineError(f"--{option} {','.join(given)!r} names nothing.\n  fix: leave it out, or name something")
    return found


def settings_for(paths: Sequence[Path], *, config: Path | None, isolated: bool) -> Settings:
    """The settings that hold: of a file that was named, of none, or of the project that the first path lies in.

    Raises:
        LintSettingsError: they cannot be used.
        FrostlineError: the file that was named has none.
    """
    if isolated and config is not None:
        raise FrostlineError(
            f"--isolated and --config {config}: the one reads no settings, the other does.\n  fix: leave out one"
        )
    if isolated:
        return Settings()
    if config is None:
        first = paths[0] if paths and str(paths[0]) != STDIN else Path()
        return read_settings(first)
    if not config.is_file():
        raise FrostlineError(f"--config {config}: there is no such file.\n  fix: the path of a pyproject.toml")
    found = read_settings_file(config)
    if found is None:
        raise FrostlineError(
            f"--config {config}: it has no table [tool.frostline.lint].\n"
            "  fix: a file that has one, or --isolated for none"
        )
    return found


def stdin_name(paths: Sequence[Path], given: str | None) -> str | None:
    """How standard input is called, where it is what is linted.

    Raises:
        FrostlineError: it is named beside files, or has a name and is not linted.
    """
    asked = [str(path) == STDIN for path in paths]
    if any(asked) and len(paths) > 1:
        raise FrostlineError("- is standard input, and stands alone.\n  fix: - or paths, not both")
    if not any(asked) and given is not None:
        raise FrostlineError(f"--stdin-filename {given}: standard input is not linted.\n  fix: - in place of a path")
    return (given or "stdin.py") if any(asked) else None


def lint_stdin(data: bytes, name: str, settings: Settings, *, fix: bool) -> Work:
    """Lint what standard input holds, and mend it in memory where that is asked for.

    Args:
        data: its content.
        name: how it is called.
        settings: which rules run, and whether unsafe fixes are wanted.
        fix: whether what can be mended is.

    Raises:
        LintSettingsError: a rule does not exist.
    """
    if not fix:
        from frostline.lint.run import lint_source

        return Work(lint_source(data, name, settings))
    from frostline.lint.fix_files import fix_source

    done = fix_source(data, name, settings, unsafe=settings.unsafe_fixes)
    content = done.sources[name].to_bytes() if name in done.sources else data
    return Work(_with_all_failures(done), done.applied, done.diff, content)


def _with_all_failures(done: FixReport) -> LintReport:
    """What is left, with the files that could not be linted or mended."""
    return replace(done.report, failures=tuple(dict.fromkeys([*done.report.failures, *done.failures])))


def against(work: Work, baseline: Path | None) -> Outcome:
    """What was done against a file of known findings, if there is one.

    Raises:
        BaselineError: the file cannot be used.
    """
    report = work.report
    if baseline is None:
        return Outcome(report, work.fixed)
    from frostline.baseline import read_baseline

    split = read_baseline(baseline).split([each.finding for each in report.diagnostics])
    return Outcome(report, work.fixed, split.known, split.gone)


def exit_code(outcome: Outcome, *, exit_zero: bool = False, exit_non_zero_on_fix: bool = False) -> int:
    """0 if it is clean, 1 if there are new findings, 2 if there are none and a file could not be linted.

    Args:
        outcome: what came of it.
        exit_zero: findings do not count.
        exit_non_zero_on_fix: what was mended counts.

    Example:
        >>> from frostline.lint.diagnostic import Failure
        >>> exit_code(Outcome(LintReport())), exit_code(Outcome(LintReport(failures=(Failure("a.py", "not UTF-8"),))))
        (0, 2)
    """
    if outcome.new.diagnostics and not exit_zero:
        return 1
    if outcome.report.failures:
        return 2
    return int(bool(outcome.fixed) and exit_non_zero_on_fix)
