"""Fixes made in a source, shown as a difference, and written to the file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from frostline.errors import CannotWrite
from frostline.findings import Safety
from frostline.lint.diagnostic import Diagnostic, Edit, Fix
from frostline.lint.source import Source


def apply_fixes(source: Source, diagnostics: Sequence[Diagnostic], *, unsafe: bool) -> tuple[Source, list[Diagnostic]]:
    """Make the fixes that go together, in the order of the text.

    Of two fixes whose edits touch each other the first is made, and the other left for a next round. A whole line that
    two fixes insert at one place is inserted once.

    Args:
        source: what the diagnostics are about.
        diagnostics: those without a fix are passed over.
        unsafe: make unsafe fixes too.

    Returns:
        The source after that, and the diagnostics whose fixes were made.
    """
    wanted = {Safety.SAFE, Safety.UNSAFE} if unsafe else {Safety.SAFE}
    taken: dict[Edit, None] = {}
    whole: set[tuple[Edit, ...]] = set()
    applied: list[Diagnostic] = []
    fixable = [(each.fix, each) for each in diagnostics if each.fix is not None and each.fix.safety in wanted]
    for fix, diagnostic in sorted(fixable, key=lambda pair: _place(pair[0])):
        if not fix.edits:
            continue
        if fix.edits not in whole:
            new = [edit for edit in fix.edits if not (edit in taken and _stands_alone(edit))]
            if not all(source.accepts(edit) for edit in new) or any(
                _touch(one, other) for one in new for other in taken
            ):
                continue
            taken.update(dict.fromkeys(new))
            whole.add(fix.edits)
        applied.append(diagnostic)
    return source.apply(list(taken)), applied


def unified_diff(before: Source, after: Source) -> str:
    """What changed, as ``diff -u`` writes it; empty if nothing did. Line ends are shown as plain ones.

    In a notebook each changed cell has a difference of its own, named ``path:cell 3``.
    """
    if before.notebook is None or after.notebook is None:
        return "".join(_difference(before.path, before.text, after.text))
    texts = {cell.number: cell.written for cell in after.notebook.cells}
    return "".join(
        line
        for cell in before.notebook.cells
        for line in _difference(f"{before.path}:cell {cell.number}", cell.written, texts.get(cell.number, ""))
    )


def write_source(path: Path, source: Source) -> None:
    """Write a source to its file, whole or not at all, whatever happens in between.

    The file keeps its permissions, and its owner where the system allows it. Behind a symbolic link it is the file
    that changes, and the link stays.

    Raises:
        CannotWrite: the file is read-only or gone, its folder cannot be written to, or a character that a fix brought
            in is none of its encoding. The file is as it was.
        StorageFull: the disk has no space left. The file is as it was.
    """
    from frostline.durable import replace_file, told

    try:
        content = source.to_bytes()
    except UnicodeEncodeError as error:
        raise CannotWrite(
            f"{path} cannot be written: {error.object[error.start : error.end]!r} is no character of {source.encoding}"
            "\n  fix: save the file as UTF-8"
        ) from error
    with told(path, len(content), "  kept: the file as it was\n  fix: make room, and run it again"):
        target = Path(os.path.realpath(path, strict=True))
        status = target.stat()
        # Only the folder has to be writable for a file to be replaced, and to root every file is writable.
        if not status.st_mode & 0o222 or not os.access(target, os.W_OK):
            raise CannotWrite(f"{path} cannot be written: it is read-only\n  fix: chmod u+w {path}")
        replace_file(target, content, mode=stat.S_IMODE(status.st_mode))
        with suppress(OSError):
            if hasattr(os, "chown") and (os.getuid(), os.getgid()) != (status.st_uid, status.st_gid):
                os.chown(target, status.st_uid, status.st_gid)
        target.chmod(stat.S_IMODE(status.st_mode))


def _place(fix: Fix) -> tuple[int, int]:
    """Where a fix begins to change the text."""
    return min(((edit.start, edit.end) for edit in fix.edits), default=(0, 0))


def _stands_alone(edit: Edit) -> bool:
    """Whether the same edit asked for twice is meant once: a replacement, or a line; no bracket or argument."""
    return edit.start < edit.end or "\n" in edit.text or "\r" in edit.text


def _touch(one: Edit, other: Edit) -> bool:
    """Whether two edits share a character, or one inserts at an edge of the other."""
    if one.start == one.end or other.start == other.end:
        return one.start <= other.end and other.start <= one.end
    return one.start < other.end and other.start < one.end


def _difference(name: str, before: str, after: str) -> Iterator[str]:
    """The lines of a difference, each with its end."""
    if before == after:
        return
    from difflib import unified_diff as compare

    for line in compare(_lines(before), _lines(after), name, name):
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(text: str) -> list[str]:
    """The lines of a text with plain ends; the last one may have none."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [f"{line}\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
