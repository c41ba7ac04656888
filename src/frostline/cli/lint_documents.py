"""What the linter says, for programs: JSON, SARIF, and the lines that GitHub makes annotations of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from frostline.cli.lint_sources import Sources
from frostline.cli.lint_text import failure_line, is_mended
from frostline.findings import CATALOGUE, Finding, Severity
from frostline.lint.diagnostic import Diagnostic, LintReport

if TYPE_CHECKING:
    from frostline.baseline import KnownFinding

_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        report: all that was found, or what is left of it after fixes.
        fixed: what was mended just now.
        known: the findings that a baseline has; ``None`` where there is no baseline.
        gone: what it has and was not found again.
    """

    report: LintReport
    fixed: tuple[Diagnostic, ...] = ()
    known: tuple[Finding, ...] | None = None
    gone: tuple[KnownFinding, ...] = ()

    @property
    def new(self) -> LintReport:
        """The report without what the baseline has."""
        if not self.known:
            return self.report
        known = set(self.known)
        left = tuple(each for each in self.report.diagnostics if each.finding not in known)
        return replace(self.report, diagnostics=left)


def as_json(outcome: Outcome, *, unsafe: bool, statistics: bool = False) -> dict[str, Any]:
    """The report, with what was fixed and, where there is a baseline, which findings it knows.

    Args:
        outcome: what was found.
        unsafe: whether unsafe fixes are wanted.
        statistics: how often each rule is broken is told too.
    """
    told = outcome.report.to_dict()
    told["fixed"] = [each.to_dict() for each in outcome.fixed]
    if outcome.known is not None:
        known = set(outcome.known)
        rows = zip(told["findings"], outcome.report.diagnostics, strict=True)
        told["findings"] = [row | {"known": each.finding in known} for row, each in rows]
        told["gone"] = [vars(one) for one in outcome.gone]
    if statistics:
        found = outcome.new.diagnostics
        counts = Counter(each.finding.code for each in found)
        mended = Counter(each.finding.code for each in found if is_mended(each, unsafe=unsafe))
        told["statistics"] = [
            {"code": code, "title": CATALOGUE[code], "count": number, "fixable": mended[code]}
            for code, number in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        ]
    return told


def as_sarif(outcome: Outcome, sources: Sources) -> str:
    """The report as SARIF 2.1.0; fixes come along as replacements, and files that could not be linted as notes."""
    import frostline
    from frostline.cli.lint_rules import lint_rule_texts
    from frostline.report.sarif import render_sarif

    found = outcome.report.diagnostics
    return render_sarif(
        [_placed(each) for each in found],
        list(lint_rule_texts().values()),
        tool="frostline lint",
        version=frostline.__version__,
        known=None if outcome.known is None else _placed_known(found, outcome.known),
        notes=[(Severity.ERROR, f"not linted: {failure_line(each)}") for each in outcome.report.failures],
        extents=[_extent(each, sources) for each in found],
    )


def as_github(outcome: Outcome) -> list[str]:
    """A line each for new findings and for files that could not be linted, of which a build makes annotations.

    Source: GitHub, Workflow commands for GitHub Actions: setting an error, warning or notice message.
    """
    lines: list[str] = []
    for each in outcome.new.diagnostics:
        finding = each.finding
        # The lines of a cell are not those of the file.
        at: list[tuple[str, object]] = [("title", f"frostline {finding.code}"), ("file", finding.file)]
        if finding.line and not each.cell:
            at += [("line", finding.line), ("endLine", each.end_line)]
            if finding.line == each.end_line:
                at[-1:] = [("col", finding.column), ("endLine", each.end_line), ("endColumn", each.end_column)]
        said = f"{_in_cell(each)}{finding.message}"
        if finding.remedy:
            said += f"\nfix: {finding.remedy}"
        lines.append(_command(_COMMANDS[finding.severity], at, said))
    for failure in outcome.report.failures:
        at = [("title", "frostline"), ("file", failure.file)]
        if failure.line and not failure.cell:
            at += [("line", failure.line), *([("col", failure.column)] if failure.column else [])]
        lines.append(_command("error", at, f"not linted: {failure.message}"))
    return lines


def _command(name: str, properties: Sequence[tuple[str, object]], message: str) -> str:
    told = ",".join(f"{key}={_escaped(str(value), ':,')}" for key, value in properties)
    return f"::{name} {told}::{_escaped(message)}"


def _escaped(text: str, also: str = "") -> str:
    """What would end a message, or a property where ``also`` says so, as its code."""
    for char in "%\r\n" + also:
        text = text.replace(char, f"%{ord(char):02X}")
    return text


def _in_cell(diagnostic: Diagnostic) -> str:
    return f"cell {diagnostic.cell}, line {diagnostic.finding.line}: " if diagnostic.cell else ""


def _placed(diagnostic: Diagnostic) -> Finding:
    """The finding as a file can show it: a notebook's own lines are those of its JSON, which nobody reads."""
    finding = diagnostic.finding
    if not diagnostic.cell:
        return finding
    return replace(finding, message=_in_cell(diagnostic) + finding.message, line=0, column=0)


def _placed_known(found: Sequence[Diagnostic], known: Sequence[Finding]) -> set[Finding]:
    told = set(known)
    return {_placed(each) for each in found if each.finding in told}


def _extent(diagnostic: Diagnostic, sources: Sources) -> Any:
    from frostline.report.sarif import Extent, Replacement

    if diagnostic.cell:
        return Extent()
    end = (diagnostic.end_line, diagnostic.end_column)
    source, fix = sources.source(diagnostic.finding.file), diagnostic.fix
    if source is None or fix is None:
        return Extent(*end)
    edits = (Replacement(*source.position(edit.start), *source.position(edit.end), edit.text) for edit in fix.edits)
    return Extent(*end, fix.title, tuple(edits))
