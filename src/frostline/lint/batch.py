"""Lints a batch of files in one process; what they import from each other is looked up once."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from frostline.lint.cache import Result, digest
from frostline.lint.diagnostic import Failure
from frostline.lint.engine import lint, open_walk
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.project import Project
from frostline.lint.source import Source, source_from_bytes

# What is let go of is freed at once, but for a little that stands in circles; that is looked for after so many lines.
_LINES_BETWEEN_COLLECTIONS = 200_000


class Batch:
    """The files of a run, as one process sees them.

    Args:
        paths: name, as it is printed, to path, of all files.
    """

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths
        self._project = Project(paths, self._open, self._text)

    def lint(self, names: Sequence[str]) -> list[tuple[str, Result]]:
        """Lint some of the files."""
        found: list[tuple[str, Result]] = []
        lines = 0
        with _collector_resting():
            for name in names:
                result = self._lint(name)
                found.append((name, result))
                lines += result.lines
                self._project.trim()
                if lines > _LINES_BETWEEN_COLLECTIONS:
                    lines = 0
                    gc.collect()
        return found

    def _lint(self, name: str) -> Result:
        data = self._bytes(name)
        source = data if isinstance(data, Failure) else source_from_bytes(data, name)
        result = Result("" if isinstance(data, Failure) else digest(data))
        if isinstance(source, Failure):
            result.failure = source
            return result
        project = self._project
        project.asked, project.missed, project.asked_callers = set(), False, False
        result.diagnostics, result.failure = lint(source, project)
        result.lines = source.text.count("\n") + (not source.text.endswith("\n") and bool(source.text))
        result.asked = frozenset(project.asked)
        result.missed, result.asked_callers = project.missed, project.asked_callers
        return result

    def _bytes(self, name: str) -> bytes | Failure:
        try:
            return Path(self._paths[name]).read_bytes()
        except OSError as error:
            return Failure(name, (error.strerror or str(error)).lower())

    def _source(self, name: str) -> Source | None:
        data = self._bytes(name)
        source = data if isinstance(data, Failure) else source_from_bytes(data, name)
        return None if isinstance(source, Failure) else source

    def _open(self, name: str) -> ModuleWalk | None:
        source = self._source(name)
        return open_walk(source, self._project) if source is not None else None

    def _text(self, name: str) -> str:
        source = self._source(name)
        return source.text if source is not None else ""


@contextmanager
def _collector_resting() -> Iterator[None]:
    """No garbage collection inside, which would walk through every tree again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


_batch: Batch | None = None


def start(paths: dict[str, str]) -> None:
    """Begin the work of a process."""
    global _batch
    _batch = Batch(paths)


def work(names: Sequence[str]) -> list[tuple[str, Result]]:
    """Lint some of the files in the process that :func:`start` began."""
    assert _batch is not None
    return _batch.lint(names)
