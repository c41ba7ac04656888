"""The text that findings of the linter point into, read again to be shown."""

from __future__ import annotations

from collections.abc import Mapping
from io import StringIO
from itertools import groupby
from pathlib import Path

from frostline.lint.diagnostic import Diagnostic, Edit, Failure, Fix
from frostline.lint.source import Source, edited, read_source, source_from_bytes

# Edits that are fewer lines apart than this are shown as one piece.
_NEAR = 2


class Sources:
    """Files by the names that findings have; each is read once, when it is first asked for.

    Args:
        given: the content of what is no file, such as standard input, by its name.
    """

    def __init__(self, given: Mapping[str, bytes] | None = None) -> None:
        self._given = dict(given or {})
        self._read: dict[str, Source | None] = {}
        self._cells: dict[str, dict[int, list[str]]] = {}

    def source(self, name: str) -> Source | None:
        """The text of a file; ``None`` where it cannot be read any more."""
        if name not in self._read:
            data = self._given.get(name)
            found = read_source(Path(name), name) if data is None else source_from_bytes(data, name)
            self._read[name] = None if isinstance(found, Failure) else found
        return self._read[name]

    def lines(self, name: str, cell: int) -> list[str]:
        """The lines of a file, or of one cell of a notebook, without their ends; none where it cannot be read."""
        if name not in self._cells:
            source, cells = self.source(name), dict[int, list[str]]()
            if source is not None:
                for number in range(1, source.line_count + 1):
                    cells.setdefault(source.cell_of(number)[0], []).append(source.line_text(number))
            self._cells[name] = cells
        return self._cells[name].get(cell, [])

    def changes(self, diagnostic: Diagnostic) -> list[tuple[list[str], list[str]]]:
        """What a fix does to the lines that it touches: those before and those after it, piece by piece.

        Empty where there is no fix, or where the file cannot be read any more.
        """
        source, fix = self.source(diagnostic.finding.file), diagnostic.fix
        if source is None or fix is None or any(not source.accepts(edit) for edit in fix.edits):
            return []
        return [_change(source, edits) for edits in _pieces(source, fix)]


def _pieces(source: Source, fix: Fix) -> list[list[Edit]]:
    """The edits of a fix, those of neighbouring lines together."""
    numbered: list[tuple[int, Edit]] = []
    number, last = 0, -_NEAR
    for edit in sorted(fix.edits, key=lambda edit: (edit.start, edit.end)):
        if source.position(edit.start)[0] - last >= _NEAR:
            number += 1
        last = source.position(edit.end)[0]
        numbered.append((number, edit))
    return [[edit for _, edit in piece] for _, piece in groupby(numbered, key=lambda pair: pair[0])]


def _change(source: Source, edits: list[Edit]) -> tuple[list[str], list[str]]:
    first, last = source.position(edits[0].start)[0], source.position(edits[-1].end)[0]
    start = source.offset(first, 0)
    end = source.offset(last + 1, 0)
    moved = [Edit(edit.start - start, edit.end - start, edit.text) for edit in edits]
    before, after = _lines(source.text[start:end]), _lines(edited(source.text[start:end], moved))
    # Whole lines that are inserted or removed come with a neighbour that stays as it is.
    while before and after and before[-1] == after[-1]:
        before, after = before[:-1], after[:-1]
    while before and after and before[0] == after[0]:
        before, after = before[1:], after[1:]
    return before, after


def _lines(text: str) -> list[str]:
    """The lines of a text as Python takes them: other signs that may end a line do not."""
    return [line.rstrip("\n") for line in StringIO(text, newline=None)]
