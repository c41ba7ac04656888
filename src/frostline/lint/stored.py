"""Diagnostics as plain values that JSON can hold, and back: for the cache, and between processes."""

from __future__ import annotations

from typing import Any

from frostline.findings import Finding, Safety, Severity
from frostline.lint.diagnostic import Diagnostic, Edit, Failure, Fix


def diagnostic_to(diagnostic: Diagnostic) -> dict[str, Any]:
    """A diagnostic as plain values; the file is left out."""
    finding, fix = diagnostic.finding, diagnostic.fix
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "message": finding.message,
        "where": finding.where,
        "evidence": finding.evidence,
        "remedy": finding.remedy,
        "safety": finding.safety.value,
        "line": finding.line,
        "column": finding.column,
        "source": finding.source,
        "inferred": finding.inferred,
        "end": [diagnostic.end_line, diagnostic.end_column],
        "cell": diagnostic.cell,
        "fix": None
        if fix is None
        else [fix.title, fix.safety.value, [[edit.start, edit.end, edit.text] for edit in fix.edits]],
    }


def diagnostic_from(data: dict[str, Any], file: str) -> Diagnostic:
    """The diagnostic that plain values stand for.

    Raises:
        KeyError, TypeError, ValueError: they stand for none.

    Example:
        >>> finding = Finding("F101", Severity.ERROR, "typo", "main", file="a.py", line=3, column=5, source="x.y = 1")
        >>> one = Diagnostic(finding, 3, 9, Fix((Edit(4, 5, "z"),), Safety.SAFE, "Rename"))
        >>> diagnostic_from(diagnostic_to(one), "a.py") == one
        True
    """
    finding = Finding(
        code=data["code"],
        severity=Severity(data["severity"]),
        message=data["message"],
        where=data["where"],
        evidence=data["evidence"],
        remedy=data["remedy"],
        safety=Safety(data["safety"]),
        file=file,
        line=data["line"],
        column=data["column"],
        source=data["source"],
        inferred=data["inferred"],
    )
    fix = None
    if data["fix"] is not None:
        title, safety, edits = data["fix"]
        fix = Fix(tuple(Edit(start, end, text) for start, end, text in edits), Safety(safety), title)
    end_line, end_column = data["end"]
    return Diagnostic(finding, end_line, end_column, fix, data["cell"])


def failure_to(failure: Failure) -> list[Any]:
    """A failure as plain values; the file is left out."""
    return [failure.message, failure.line, failure.column, failure.cell]


def failure_from(data: list[Any], file: str) -> Failure:
    """The failure that plain values stand for."""
    message, line, column, cell = data
    return Failure(file, message, line, column, cell)
