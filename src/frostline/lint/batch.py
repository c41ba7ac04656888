"""Lints a batch of files in one process; what they import from each other is looked up once."""

from __future__ import annotations

import gc
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from frostline.lint.cache import Result, digest
from frostline.lint.diagnostic import Failure
from frostline.lint.engine import lint, open_walk
from frostline.lint.module_walk import ModuleWalk
from frostline.lint.project import Project
from frostline.lint.source import Source, read_content, source_from_bytes

# What is let go of is freed at once, but for a little that stands in circles; that is looked for after so many lines.
_LINES_BETWEEN_COLLECTIONS = 200_000


class Batch:
    """The files of a run, as one process sees them.

    Args:
        paths: name, as it is printed, to path, of all files.
        contents: name to content, of files that are not taken as they are on the disk.
    """

    def __init__(self, paths: Mapping[str, str], contents: Mapping[str, bytes] | None = None) -> None:
        self._paths = paths
        self._contents = contents or {}
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
        result.diagnostics, result.failure = lint(source, self._project)
        result.lines = source.text.count("\n") + (not source.text.endswith("\n") and bool(source.text))
        result.depends = self._project.depends_on(name)
        return result

    def _bytes(self, name: str) -> bytes | Failure:
        content = self._contents.get(name)
        return content if content is not None else read_content(Path(self._paths[name]), name)

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
def _collector_resting() -> Generator[None, None, None]:
    """No garbage collection inside, which would walk through every tree again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Worker:
    """What a process keeps between two pieces of work."""

    _batch: Batch

    @classmethod
    def start(cls, paths: Mapping[str, str], contents: Mapping[str, bytes]) -> None:
        """Begin the work of a process; the arguments are those of :class:`Batch`."""
        cls._batch = Batch(paths, contents)

    @classmethod
    def work(cls, names: Sequence[str]) -> list[tuple[str, Result]]:
        """Lint some of the files, in a process in which :meth:`start` was called."""
        return cls._batch.lint(names)
