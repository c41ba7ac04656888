"""Lints files and folders: what is unchanged comes from the cache, the rest is shared out to processes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from frostline.lint.batch import Batch, Worker
from frostline.lint.cache import Cache, Result, digest
from frostline.lint.diagnostic import Diagnostic, Failure, LintReport
from frostline.lint.discovery import FoundFile, find_files
from frostline.lint.engine import forget_packages, lint
from frostline.lint.rules import all_rules
from frostline.lint.selection import RuleSelection
from frostline.lint.settings import Settings
from frostline.lint.source import read_content, source_from_bytes

# A process costs a tenth of a second; below this many bytes of source a second one does not pay.
_WORTH_A_PROCESS = 400_000
# So many pieces of work for each process: one that is through takes the next.
_PIECES = 6


def lint_paths(
    paths: Sequence[Path],
    settings: Settings,
    *,
    jobs: int | None = None,
    cache: bool = True,
    contents: Mapping[str, bytes] | None = None,
) -> LintReport:
    r"""Lint files, and the Python files and notebooks in folders. No file is changed, and nothing in them is run.

    The same files give the same report, however many processes share the work, with or without a cache.

    Args:
        paths: files and folders.
        settings: which rules, and what is left out.
        jobs: how many processes; by default as many as there are cores, where there is enough to do.
        cache: keep results in ``settings.cache_folder``, and take from there what has not changed.
        contents: what files hold that are not to be taken as they are on the disk, by the names that are printed.

    Returns:
        What was found, by file and place, and which files could not be read or parsed.

    Raises:
        LintSettingsError: a path or rule does not exist.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "train.py"
        >>> _ = file.write_text("for p in model.parameters():\n    p.require_grad = False\n")
        >>> report = lint_paths([file], Settings(), cache=False)
        >>> [(each.finding.code, each.finding.line) for each in report.diagnostics]
        [('F101', 2)]
    """
    selection = RuleSelection.from_settings(settings, all_rules().keys())
    forget_packages()
    files, failures = find_files(paths, settings)
    results = _results(files, settings, jobs, cache, contents or {})
    diagnostics: list[Diagnostic] = []
    lines = 0
    for file in files:
        result = results[file.name][0]
        lines += result.lines
        if result.failure is not None:
            failures.append(result.failure)
        if result.diagnostics:
            codes = selection.codes_for(str(file.path))
            diagnostics += [each for each in result.diagnostics if each.finding.code in codes]
    return LintReport(
        diagnostics=tuple(diagnostics),
        failures=tuple(sorted(failures, key=lambda failure: failure.file)),
        files=len(files),
        lines=lines,
        cached=sum(was_cached for _, was_cached in results.values()),
    )


def lint_source(data: bytes, name: str, settings: Settings) -> LintReport:
    """Lint one content that need not be a file; it is linted alone.

    Args:
        data: the content.
        name: what it is called; ``.ipynb`` at the end makes it a notebook.
        settings: which rules.

    Raises:
        LintSettingsError: a rule does not exist.
    """
    codes = RuleSelection.from_settings(settings, all_rules().keys()).codes_for(os.path.abspath(name))
    source = source_from_bytes(data, name)
    if isinstance(source, Failure):
        return LintReport(failures=(source,), files=1)
    found, failure = lint(source)
    return LintReport(
        diagnostics=tuple(each for each in found if each.finding.code in codes),
        failures=(failure,) if failure is not None else (),
        files=1,
        lines=source.line_count,
    )


def _results(
    files: Sequence[FoundFile], settings: Settings, jobs: int | None, keep: bool, contents: Mapping[str, bytes]
) -> dict[str, tuple[Result, bool]]:
    """The result of each file, and whether it was in the cache."""
    paths = {file.name: str(file.path) for file in files}
    digests: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for name, path in paths.items():
        content = contents.get(name)
        data = content if content is not None else read_content(Path(path), name)
        sizes[name] = 0 if isinstance(data, Failure) else len(data)
        digests[name] = digest(data) if keep and not isinstance(data, Failure) else ""
    known = Cache(settings.cache_folder if keep else None, digests)
    results: dict[str, tuple[Result, bool]] = {}
    for name in paths:
        before = known.get(name) if keep else None
        if before is not None:
            results[name] = (before, True)
    missing = [name for name in paths if name not in results]
    for name, result in _linted(missing, paths, contents, sizes, jobs):
        # A file that changed since it was read first, or cannot be read, is not kept.
        if keep and result.digest == digests[name] != "":
            known.put(name, result)
        results[name] = (result, False)
    known.write()
    return results


def _linted(
    names: list[str], paths: dict[str, str], contents: Mapping[str, bytes], sizes: dict[str, int], jobs: int | None
) -> list[tuple[str, Result]]:
    """What was found in some of the files, in their order."""
    total = sum(sizes[name] for name in names)
    wanted = jobs if jobs is not None else min(_cores(), total // _WORTH_A_PROCESS)
    processes = max(1, min(wanted, len(names)))
    if processes == 1:
        return Batch(paths, contents).lint(names)
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # A fork has everything imported; with threads about, which may hold locks, it is not safe.
    method = "fork" if sys.platform == "linux" and threading.active_count() == 1 else "spawn"
    pieces = _pieces(names, sizes, total // (processes * _PIECES) + 1)
    with ProcessPoolExecutor(processes, get_context(method), Worker.start, (paths, dict(contents))) as pool:
        return [each for found in pool.map(Worker.work, pieces) for each in found]


def _pieces(names: list[str], sizes: dict[str, int], size: int) -> list[list[str]]:
    """Names in their order, which keeps neighbours together, in pieces of about the same size."""
    pieces: list[list[str]] = [[]]
    room = size
    for name in names:
        if room <= 0:
            pieces.append([])
            room = size
        pieces[-1].append(name)
        room -= sizes[name]
    return pieces


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
