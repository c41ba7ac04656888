"""Findings as SARIF 2.1.0, the format that code hosts and editors read.

Source: OASIS, Static Analysis Results Interchange Format (SARIF) Version 2.1.0, errata 01.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from frostline.findings import Finding, Severity
from frostline.report.rule_text import RuleText

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}
FINGERPRINT = "frostlineFinding/v1"
_ROOT = "SRCROOT"
# A finding may concern 100,000 tensors; a viewer shows a handful.
_MOST_PATHS = 50


@dataclass(frozen=True)
class Replacement:
    """A piece of a file and what is to stand there instead; counts are from 1, the end is behind the last character.

    Attributes:
        line: where it begins.
        column: likewise.
        end_line: where it ends.
        end_column: likewise.
        text: what is put there.
    """

    line: int
    column: int
    end_line: int
    end_column: int
    text: str


@dataclass(frozen=True)
class Extent:
    """What is known of a finding in a file beside where it begins.

    Attributes:
        end_line: where it ends; 0 where that is not known.
        end_column: likewise, behind its last character.
        title: what its fix does.
        replacements: the fix; empty where there is none.
    """

    end_line: int = 0
    end_column: int = 0
    title: str = ""
    replacements: tuple[Replacement, ...] = ()


def render_sarif(
    findings: Sequence[Finding],
    rules: Sequence[RuleText],
    *,
    tool: str,
    version: str,
    known: Collection[Finding] | None = None,
    notes: Sequence[tuple[Severity, str]] = (),
    extents: Sequence[Extent] = (),
) -> str:
    """Findings as SARIF. The same findings give the same text, byte for byte.

    Args:
        findings: in the order in which they are to be read.
        rules: the rules that were asked; one that a finding names and that is not here is added with its title.
        tool: the name of what found them.
        version: its version.
        known: the findings that a baseline has; ``None`` where there is no baseline.
        notes: what is to be said of the run itself: how bad, and a sentence.
        extents: where each finding ends and how it is mended; one each, or none at all.

    Returns:
        The text of a file, to be written as UTF-8.

    Example:
        >>> finding = Finding("F107", Severity.ERROR, "3 layers move", "trunk.bn1", file="train.py", line=3)
        >>> log = json.loads(render_sarif([finding], [], tool="frostline doctor", version="0.1"))
        >>> result = log["runs"][0]["results"][0]
        >>> result["ruleId"], result["level"], result["locations"][0]["physicalLocation"]["region"]
        ('F107', 'error', {'startLine': 3})
    """
    listed = {rule.code: rule for rule in rules}
    for finding in findings:
        listed.setdefault(finding.code, RuleText(finding.code))
    index = {code: number for number, code in enumerate(listed)}
    run: dict[str, Any] = {
        "tool": {
            "driver": {
                "name": tool,
                "version": version,
                "rules": [_rule(rule) for rule in listed.values()],
            }
        },
        "invocations": [_invocation(notes)],
        # Where that is, the reader of the file knows.
        "originalUriBaseIds": {_ROOT: {"description": {"text": "The directory that the command was run in."}}},
        "columnKind": "unicodeCodePoints",
        "results": [
            _result(finding, extent, index[finding.code], known)
            for finding, extent in zip(findings, extents or [Extent()] * len(findings), strict=True)
        ],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _rule(rule: RuleText) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": rule.code,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": "\n\n".join(text for text in (rule.what, rule.why) if text) or rule.title},
        "defaultConfiguration": {"level": LEVELS[rule.severity]},
        "properties": {"tags": [rule.family], "fixSafety": rule.safety.value},
    }
    if parts := rule.parts():
        found["help"] = {
            "text": "\n\n".join(f"{heading}\n{_indented(text)}" for heading, text, _ in parts),
            "markdown": "\n\n".join(
                f"**{heading}**\n\n{_fenced(text) if is_code else text}" for heading, text, is_code in parts
            ),
        }
    return found


def _invocation(notes: Sequence[tuple[Severity, str]]) -> dict[str, Any]:
    # It is about the tool itself: that what it looked at crashed is a note.
    found: dict[str, Any] = {"executionSuccessful": True}
    if notes:
        found["toolExecutionNotifications"] = [
            {"level": LEVELS[severity], "message": {"text": text}} for severity, text in notes
        ]
    return found


def _result(finding: Finding, extent: Extent, index: int, known: Collection[Finding] | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": index,
        "level": LEVELS[finding.severity],
        "message": {"text": _message(finding)},
        "locations": [_location(finding, extent)],
        "partialFingerprints": {FINGERPRINT: finding.id},
        "properties": {
            "fixSafety": finding.safety.value,
            "inferred": finding.inferred,
            "entries": len(finding.paths),
        },
    }
    if extent.replacements:
        found["fixes"] = [_fix(finding.file, extent)]
    if known is not None:
        found["baselineState"] = "unchanged" if finding in known else "new"
    return found


def _fix(file: str, extent: Extent) -> dict[str, Any]:
    """A fix as an editor applies it."""
    replacements = [
        {
            "deletedRegion": {
                "startLine": each.line,
                "startColumn": each.column,
                "endLine": each.end_line,
                "endColumn": each.end_column,
            },
            "insertedContent": {"text": each.text},
        }
        for each in extent.replacements
    ]
    return {
        "description": {"text": extent.title},
        "artifactChanges": [{"artifactLocation": _artifact(file), "replacements": replacements}],
    }


def _message(finding: Finding) -> str:
    """The finding in a sentence, which is all that a narrow view shows, then what was seen and the fix."""
    lines = [f"{finding.message}."]
    if finding.evidence:
        lines.append(f"Seen:\n{_indented(finding.evidence)}")
    if finding.remedy:
        lines.append(f"Fix ({finding.safety.value}):\n{_indented(finding.remedy)}")
    return "\n".join(lines)


def _location(finding: Finding, extent: Extent) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if finding.file:
        place: dict[str, Any] = {"artifactLocation": _artifact(finding.file)}
        region: dict[str, Any] = {}
        if finding.line:
            region["startLine"] = finding.line
            if finding.column:
                region["startColumn"] = finding.column
            if extent.end_line:
                region["endLine"] = extent.end_line
                region["endColumn"] = extent.end_column
            if finding.source:
                region["snippet"] = {"text": finding.source}
            place["region"] = region
        found["physicalLocation"] = place
    paths = list(dict.fromkeys(finding.paths or ([finding.where] if finding.where else [])))
    if paths:
        found["logicalLocations"] = [_logical(path, finding.model) for path in paths[:_MOST_PATHS]]
    return found


def _logical(path: str, model: str) -> dict[str, str]:
    full = path if not model or path == model else f"{model}.{path}" if path else model
    return {"name": path.rpartition(".")[2] or model, "fullyQualifiedName": full, "kind": "member"}


def _artifact(file: str) -> dict[str, str]:
    """A file as SARIF names it: relative to the working directory where it lies below that."""
    path = Path(file)
    if path.is_absolute():
        return {"uri": path.as_uri()}
    return {"uri": quote(path.as_posix()), "uriBaseId": _ROOT}


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def _fenced(text: str) -> str:
    """Code between fences longer than any that it has."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}python\n{text}\n{fence}"
