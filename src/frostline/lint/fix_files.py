"""Mends files: makes the fixes that are asked for, lints again, and goes on until there is nothing left to make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from frostline.errors import FrostlineError
from frostline.lint.diagnostic import Diagnostic, Failure, LintReport
from frostline.lint.discovery import find_files
from frostline.lint.fixes import apply_fixes, unified_diff, write_source
from frostline.lint.run import lint_paths, lint_source
from frostline.lint.settings import Settings
from frostline.lint.source import Source, read_source, source_from_bytes

# One fix can make room for another; what is not done after so many rounds chases its own tail.
_ROUNDS = 10


@dataclass(frozen=True)
class FixReport:
    """What was mended.

    Attributes:
        report: what is left, as linting the mended files anew would tell it.
        applied: the mistakes that were mended, by file and place as it was when they were.
        diff: what changed, as a unified difference.
        failures: files that could not be written, and fixes that were not made because the file would not parse.
        sources: the files that changed, mended.
    """

    report: LintReport
    applied: tuple[Diagnostic, ...] = ()
    diff: str = ""
    failures: tuple[Failure, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict[str, Source])


def fix_paths(
    paths: Sequence[Path],
    settings: Settings,
    *,
    unsafe: bool,
    write: bool,
    jobs: int | None = None,
    cache: bool = True,
) -> FixReport:
    """Mend files, and the Python files and notebooks in folders.

    Only the edits of fixes are made: comments, formatting, line ends, encodings and permissions stay. A file is
    written whole or not at all, and only if it still parses and something in it has changed. What is mended stays so:
    the same call again changes nothing.

    Args:
        paths: files and folders.
        settings: which rules, and what is left out.
        unsafe: make fixes too that may change what the program computes.
        write: ``False`` changes nothing on the disk, and only tells what would.
        jobs: as for :func:`~frostline.lint.run.lint_paths`.
        cache: likewise.

    Raises:
        LintSettingsError: a path or rule does not exist.
    """
    places = {file.name: file.path for file in find_files(paths, settings)[0]}

    def look(contents: Mapping[str, bytes]) -> LintReport:
        return lint_paths(paths, settings, jobs=jobs, cache=cache, contents=contents)

    mending = _Mending(look, lambda name: read_source(places[name], name), unsafe)
    mending.run()
    if write:
        for name, source in mending.after.items():
            try:
                write_source(places[name], source)
            except FrostlineError as error:
                message = str(error).splitlines()[0].removeprefix(f"{places[name]} ")
                mending.give_up(name, Failure(name, message))
        mending.settle()
    return mending.told()


def fix_source(data: bytes, name: str, settings: Settings, *, unsafe: bool) -> FixReport:
    """Mend one content that need not be a file; it is linted alone, and nothing is written.

    Args:
        data: the content.
        name: what it is called; ``.ipynb`` at the end makes it a notebook.
        settings: which rules.
        unsafe: make fixes too that may change what the program computes.

    Raises:
        LintSettingsError: a rule does not exist.
    """
    mending = _Mending(
        lambda contents: lint_source(contents.get(name, data), name, settings),
        lambda _: source_from_bytes(data, name),
        unsafe,
    )
    mending.run()
    return mending.told()


class _Mending:
    """What has been mended so far, in memory.

    Args:
        look: lints, with some contents in place of what is on the disk.
        read: reads a file as it is before anything is mended.
        unsafe: make unsafe fixes too.

    Attributes:
        after: the files that have changed.
    """

    def __init__(
        self,
        look: Callable[[Mapping[str, bytes]], LintReport],
        read: Callable[[str], Source | Failure],
        unsafe: bool,
    ) -> None:
        self._look = look
        self._read = read
        self._unsafe = unsafe
        self._before: dict[str, Source] = {}
        self._applied: dict[str, list[Diagnostic]] = {}
        self._failures: dict[str, Failure] = {}
        self._is_settled = True
        self.after: dict[str, Source] = {}
        self._report = look({})

    def run(self) -> None:
        """Make fixes in all files, lint all of them again, and so on: what is mended in one matters to others."""
        for _ in range(_ROUNDS):
            earlier = dict(self.after)
            made = self._round()
            if not made:
                break
            self._report = self._look(self._contents())
            broken = {failure.file for failure in self._report.failures} & made.keys()
            for name in broken:
                line = made[name][0].finding.line
                self._failures[name] = Failure(name, "a fix would make it unparsable, and was not made", line)
                self.after.pop(name)
                if name in earlier:
                    self.after[name] = earlier[name]
            for name in made.keys() - broken:
                self._applied.setdefault(name, []).extend(made[name])
            self._is_settled = not broken
            self.settle()

    def _round(self) -> dict[str, list[Diagnostic]]:
        """Make the fixes that go together; gives those that were made, by file."""
        found: dict[str, list[Diagnostic]] = {}
        for each in self._report.diagnostics:
            if each.fix is not None and each.finding.file not in self._failures:
                found.setdefault(each.finding.file, []).append(each)
        made: dict[str, list[Diagnostic]] = {}
        for name, diagnostics in found.items():
            source = self.after.get(name) or self._before.get(name) or self._read(name)
            if isinstance(source, Failure):
                self._failures[name] = source
                continue
            self._before.setdefault(name, source)
            changed, applied = apply_fixes(source, diagnostics, unsafe=self._unsafe)
            if not applied or changed.text == source.text:
                continue
            try:
                changed.to_bytes()
            except UnicodeEncodeError as error:
                letters = error.object[error.start : error.end]
                self._failures[name] = Failure(
                    name, f"cannot be mended: {letters!r} is no character of {error.encoding}"
                )
                continue
            self.after[name] = changed
            made[name] = applied
        return made

    def give_up(self, name: str, failure: Failure) -> None:
        """A file stays as it was."""
        self._failures[name] = failure
        self._is_settled = False
        self._applied.pop(name, None)

    def settle(self) -> None:
        """Lint again, where the last report is of something else than what there is now."""
        if not self._is_settled:
            self.after = {name: source for name, source in self.after.items() if name in self._applied}
            self._report = self._look(self._contents())
            self._is_settled = True

    def _contents(self) -> dict[str, bytes]:
        return {name: source.to_bytes() for name, source in self.after.items()}

    def told(self) -> FixReport:
        """All that was done."""
        names = sorted(self.after)
        return FixReport(
            report=self._report,
            applied=tuple(each for name in names for each in self._applied[name]),
            diff="".join(unified_diff(self._before[name], self.after[name]) for name in names),
            failures=tuple(self._failures[name] for name in sorted(self._failures)),
            sources=dict(self.after),
        )
