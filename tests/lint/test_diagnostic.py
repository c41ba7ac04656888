"""What the linter returns, as values that JSON can hold."""

from __future__ import annotations

import json

from frostline.findings import Finding, Safety, Severity
from frostline.lint.diagnostic import Diagnostic, Edit, Failure, Fix, LintReport

FINDING = Finding("F101", Severity.ERROR, "typo", "main", file="a.py", line=3, column=5, source="p.x = 1")


def test_a_diagnostic_has_all_of_its_finding_its_end_and_its_fix():
    fix = Fix((Edit(4, 5, "y"), Edit(9, 9, "!")), Safety.UNSAFE, "Rename to y")
    told = Diagnostic(FINDING, 4, 9, fix, 2).to_dict()
    assert {key: told[key] for key in FINDING.to_dict()} == FINDING.to_dict()
    assert {key: told[key] for key in told.keys() - FINDING.to_dict().keys()} == {
        "end_line": 4,
        "end_column": 9,
        "cell": 2,
        "fix": {
            "title": "Rename to y",
            "safety": "unsafe",
            "edits": [{"start": 4, "end": 5, "text": "y"}, {"start": 9, "end": 9, "text": "!"}],
        },
    }
    assert Diagnostic(FINDING, 3, 9).to_dict()["fix"] is None


def test_a_report_has_its_version_and_not_whether_it_came_from_a_cache():
    report = LintReport((Diagnostic(FINDING, 3, 9),), (Failure("b.py", "not UTF-8", 2),), 2, 10, cached=1)
    told = json.loads(json.dumps(report.to_dict()))
    assert told == {
        "schema_version": 1,
        "findings": [Diagnostic(FINDING, 3, 9).to_dict()],
        "failures": [{"file": "b.py", "message": "not UTF-8", "line": 2, "column": 0, "cell": 0}],
        "files": 2,
        "lines": 10,
    }
