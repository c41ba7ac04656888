"""What the linter says, for people: a finding in a line, or in full with its source, why it is bad, and the fix."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from frostline.cli.lint_snippet import Range, Row, snippet
from frostline.cli.lint_sources import Sources
from frostline.cli.paint import Paint
from frostline.errors import printable
from frostline.findings import CATALOGUE, Finding, Safety, Severity
from frostline.lint.diagnostic import Diagnostic, Failure, LintReport
from frostline.tables import text_table

# Prose in longer lines is hard to read.
_WIDEST = 100
# A fix may rewrite a whole function; its beginning says what it does.
_MOST_CHANGED = 12
_STYLES = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.INFO: "blue"}
_NOUNS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
# What every line below the source begins with.
_INSET = "  "


@dataclass(frozen=True)
class Look:
    """How findings are printed.

    Attributes:
        width: of the terminal.
        paint: colours, or does not.
        unsafe: unsafe fixes are wanted, so they count as fixes.
        more: what stands where something was left out.
    """

    width: int = 80
    paint: Paint = field(default_factory=lambda: Paint(False))
    unsafe: bool = False
    more: str = "..."


def place(file: str, line: int, column: int, cell: int = 0) -> str:
    """Where something is, as editors and terminals make links of it.

    Example:
        >>> place("train.py", 3, 5), place("a.ipynb", 3, 5, cell=2), place("train.py", 0, 0)
        ('train.py:3:5', 'a.ipynb:cell 2:3:5', 'train.py')
    """
    parts = [printable(file), *([f"cell {cell}"] if cell else []), *([str(line), str(column or 1)] if line else [])]
    return ":".join(parts)


def place_of(diagnostic: Diagnostic) -> str:
    """Where a finding is."""
    finding = diagnostic.finding
    return place(finding.file, finding.line, finding.column, diagnostic.cell)


def failure_line(failure: Failure) -> str:
    """A file that could not be linted, and why.

    Example:
        >>> failure_line(Failure("a.py", "invalid syntax", 3, 7))
        'a.py:3:7: invalid syntax'
    """
    return f"{place(failure.file, failure.line, failure.column, failure.cell)}: {printable(failure.message)}"


def is_mended(diagnostic: Diagnostic, *, unsafe: bool) -> bool:
    """Whether ``--fix`` would mend it, with or without ``--unsafe-fixes``."""
    fix = diagnostic.fix
    return fix is not None and (fix.safety is Safety.SAFE or (unsafe and fix.safety is Safety.UNSAFE))


def concise(diagnostic: Diagnostic, look: Look) -> str:
    """A finding in one line; a star says that ``--fix`` mends it."""
    finding, paint = diagnostic.finding, look.paint
    star = f"[{paint('*', 'cyan')}] " if is_mended(diagnostic, unsafe=look.unsafe) else ""
    code = paint(finding.code, "bold", _STYLES[finding.severity])
    return f"{paint(place_of(diagnostic), 'bold')}: {code} {star}{printable(finding.message)}"


class Full:
    """Prints findings with all that there is to say of them.

    Args:
        look: how.
        sources: the files that they are in.
    """

    def __init__(self, look: Look, sources: Sources) -> None:
        self._look, self._sources, self._paint = look, sources, look.paint
        self._width = max(min(look.width, _WIDEST), 40)

    def lines(self, diagnostic: Diagnostic) -> Iterator[str]:
        """A finding: what and where, its lines with carets, what was seen, why it is bad, and how it is mended."""
        finding, paint = diagnostic.finding, self._paint
        style = _STYLES[finding.severity]
        head = f"{finding.code} {finding.severity.value}: "
        first, *rest = textwrap.wrap(printable(finding.message), self._width - len(head)) or [""]
        yield f"{paint(finding.code, 'bold', style)} {paint(finding.severity.value, style)}: {paint(first, 'bold')}"
        yield from (" " * len(head) + paint(line, "bold") for line in rest)
        gutter = len(str(finding.line))
        yield f"{' ' * gutter}{paint('-->', 'blue')} {place_of(diagnostic)}"
        yield from self._snippet(diagnostic)
        for line in finding.evidence.splitlines():
            yield from self._note("seen", line)
        why = _why(finding)
        if why:
            yield from self._note("why", why)
        yield from self._fix(diagnostic)
        yield f"{_INSET}{self._label('rule')} {paint(f'frostline rule {finding.code}', 'dim')}"

    def _snippet(self, diagnostic: Diagnostic) -> list[str]:
        finding, look = diagnostic.finding, self._look
        lines = self._sources.lines(finding.file, diagnostic.cell)
        if not 1 <= finding.line <= len(lines):
            return [f"{' ' * len(str(finding.line))} {self._paint('|', 'blue')} {printable(finding.source)}"]
        at = Range(finding.line, finding.column, diagnostic.end_line or finding.line, diagnostic.end_column)
        return snippet(lines, at, width=look.width, paint=look.paint, style=_STYLES[finding.severity], more=look.more)

    def _fix(self, diagnostic: Diagnostic) -> Iterator[str]:
        """The change that would be made, or what a person has to do."""
        finding, fix, paint = diagnostic.finding, diagnostic.fix, self._paint
        changes = self._sources.changes(diagnostic)
        if fix is None or not changes:
            if finding.remedy:
                yield from self._note("fix", finding.remedy, paint_as="cyan")
            return
        option = "--fix" if fix.safety is Safety.SAFE else "--fix --unsafe-fixes"
        yield from self._note("fix", f"{fix.title or finding.remedy} ({fix.safety.value}, with {option})")
        left = _MOST_CHANGED
        for before, after in changes:
            margin = _margin([*before, *after])
            start = max(_differ(before, after) - margin - self._width // 3, 0)
            signed = [("-", "red", line) for line in before] + [("+", "green", line) for line in after]
            for sign, style, line in signed[: max(left, 0)]:
                room = self._width - len(_INSET) - 10
                row = Row(line[margin:])
                window = (start, start + room) if row.starts[-1] > room else (0, room)
                yield f"{_INSET}        {paint(f'{sign} {row.cut(window, self._look.more)}'.rstrip(), style)}"
            left -= len(signed)
        if left < 0:
            yield f"{_INSET}        {self._look.more} {_count(-left, 'more line')}; --diff shows all"

    def _note(self, label: str, text: str, *, paint_as: str = "") -> Iterator[str]:
        """A labelled text in lines that fit; lines of its own are kept, because code is copied."""
        indent = " " * (len(_INSET) + 8)
        first = f"{_INSET}{self._label(label)} "
        for line in text.splitlines():
            # What is indented is code.
            whole = [line] if line[:1].isspace() else textwrap.wrap(line, self._width - len(indent)) or [""]
            for piece in whole:
                yield f"{first}{self._paint(printable(piece), *([paint_as] if paint_as else []))}".rstrip()
                first = indent

    def _label(self, label: str) -> str:
        return f"{self._paint('=', 'blue')} {self._paint(f'{label}:', 'bold')}{' ' * (4 - len(label))}"


def first_sentence(text: str) -> str:
    r"""The first sentence of a text, in one line.

    Example:
        >>> first_sentence("Nothing is frozen,\nbecause torch ignores it (e.g. 3.5). The weights move.")
        'Nothing is frozen, because torch ignores it (e.g. 3.5).'
    """
    whole = " ".join(text.split())
    found = re.match(r".*?[.!?](?=\s+[A-Z`]|$)", whole)
    return found[0] if found else whole


def summary(report: LintReport, look: Look, *, fixed: int = 0) -> list[str]:
    """What came of it all: how many findings of each kind, and how many of them can be fixed how.

    Args:
        report: what was found, or what is left of it.
        look: how it is printed.
        fixed: how many were mended just now.

    Example:
        >>> summary(LintReport(files=12), Look())
        ['All 12 files clean.']
    """
    found, paint = report.diagnostics, look.paint
    files = _count(report.files, "file")
    done = f"Fixed {fixed}; " if fixed else ""
    if not found:
        return [*_nothing(report, files, done, paint)]
    counts = Counter(each.finding.severity for each in found)
    kinds = ", ".join(
        paint(_count(counts[severity], noun), "bold", _STYLES[severity])
        for severity, noun in _NOUNS.items()
        if counts[severity]
    )
    mended = sum(is_mended(each, unsafe=look.unsafe) for each in found)
    how = "--fix --unsafe-fixes" if look.unsafe else "--fix"
    with_fix = f" ({mended} fixable with {how})" if mended else ""
    verb = "left" if fixed else "found"
    lines = [f"{done}{kinds} {verb} in {files}{with_fix}." if fixed else f"Found {kinds} in {files}{with_fix}."]
    hidden = sum(is_mended(each, unsafe=True) for each in found) - mended
    if hidden:
        lines.append(f"{_count(hidden, 'hidden fix', 'hidden fixes')} can be had with --unsafe-fixes.")
    return lines


def statistics(report: LintReport, look: Look) -> str:
    """How often each rule is broken, the commonest first, as a table."""
    counts = Counter(each.finding.code for each in report.diagnostics)
    mended = Counter(each.finding.code for each in report.diagnostics if is_mended(each, unsafe=look.unsafe))
    # The titles give way, since figures and codes are short already.
    room = max(look.width - 30, 20)
    rows = [
        (number, code, textwrap.shorten(CATALOGUE[code], room, placeholder=f" {look.more}"), mended[code] or None)
        for code, number in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    ]
    table = text_table(["count", "code", "mistake", "fixable"], rows)
    return table if look.more == "…" else table.replace("─", "-").replace("–", "-")


def _nothing(report: LintReport, files: str, done: str, paint: Paint) -> Sequence[str]:
    if not report.files and not report.failures:
        return ["No Python files found."]
    if report.failures:
        clean = _count(report.files - len(report.failures), "file") if report.files > len(report.failures) else ""
        return [f"{done}{clean} clean." if clean else f"{done}no file could be linted.".capitalize()]
    said = f"All {files} clean." if report.files > 1 else "1 file clean."
    return [paint(done + (said[0].lower() if done else said[0]) + said[1:], "green")]


def _why(finding: Finding) -> str:
    from frostline.lint.rules import all_rules

    rule = all_rules().get(finding.code)
    return "" if rule is None else first_sentence(rule.why)


def _differ(before: Sequence[str], after: Sequence[str]) -> int:
    """The first column in which a line differs from the one that takes its place."""
    columns: list[int] = []
    for one, other in zip(before, after, strict=False):
        if one != other:
            same = (number for number, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
            columns.append(next(same, min(len(one), len(other))))
    return min(columns, default=0)


def _margin(lines: Sequence[str]) -> int:
    """How far all of these lines are indented."""
    return min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)


def _count(number: int, noun: str, nouns: str = "") -> str:
    return f"{number:,} {noun if number == 1 else nouns or f'{noun}s'}"
