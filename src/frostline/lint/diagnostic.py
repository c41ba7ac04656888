"""What the linter returns: a finding of the catalogue with its exact place and, where there is one, its text edits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from frostline.findings import Finding, Safety


@dataclass(frozen=True)
class Edit:
    """A piece of text to be replaced.

    Attributes:
        start: offset of its first character in :attr:`~frostline.lint.source.Source.text`, from 0.
        end: offset behind its last character; equal to ``start`` where text is only inserted.
        text: what stands there afterwards.
    """

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Fix:
    """Edits that mend one mistake; all of them are made, or none.

    Attributes:
        edits: they do not overlap, and are in the order of the text.
        safety: ``safe`` where the meaning that was intended is the only thing that changes, ``unsafe`` where the
            program may compute something else than was wanted.
        title: what it does, in the imperative: ``Rename to requires_grad``.
    """

    edits: tuple[Edit, ...]
    safety: Safety
    title: str


@dataclass(frozen=True)
class Diagnostic:
    """One mistake in a file.

    Attributes:
        finding: code, severity, message, evidence, remedy, file, line, column and the text of the line; ``where`` is
            the function it stands in. In a notebook, line and column count within the cell.
        end_line: the last line of what is wrong, from 1.
        end_column: the column behind its last character, from 1.
        fix: how it is mended; ``None`` where that takes a person.
        cell: the number of the cell of a notebook, from 1 as the notebook counts all its cells; 0 in other files.
    """

    finding: Finding
    end_line: int
    end_column: int
    fix: Fix | None = None
    cell: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values: those of the finding, where it ends, and its fix."""
        fix = self.fix
        return {
            **self.finding.to_dict(),
            "end_line": self.end_line,
            "end_column": self.end_column,
            "cell": self.cell,
            "fix": None
            if fix is None
            else {
                "title": fix.title,
                "safety": fix.safety.value,
                "edits": [{"start": edit.start, "end": edit.end, "text": edit.text} for edit in fix.edits],
            },
        }


@dataclass(frozen=True)
class Failure:
    """A file that could not be linted; the others were.

    Attributes:
        file: its path, as it is printed.
        message: why, in one line: ``invalid syntax``, ``not UTF-8``, ``permission denied``.
        line: where, from 1; 0 where there is no such place.
        column: its column, from 1; 0 likewise.
        cell: as in :class:`Diagnostic`.
    """

    file: str
    message: str
    line: int = 0
    column: int = 0
    cell: int = 0


@dataclass(frozen=True)
class LintReport:
    """What was found in all files.

    Attributes:
        diagnostics: by file, then by place.
        failures: files that could not be linted, by file.
        files: how many files were read.
        lines: how many lines they have.
        cached: how many of the files were unchanged since an earlier run, and taken from its cache.
    """

    diagnostics: tuple[Diagnostic, ...] = ()
    failures: tuple[Failure, ...] = field(default=())
    files: int = 0
    lines: int = 0
    cached: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, with its version."""
        return {
            "schema_version": 1,
            "findings": [each.to_dict() for each in self.diagnostics],
            "failures": [vars(each) for each in self.failures],
            "files": self.files,
            "lines": self.lines,
        }
