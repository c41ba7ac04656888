"""What was found goes to plain values and back unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.findings import CATALOGUE, Finding, Safety, Severity
from frostline.lint.diagnostic import Diagnostic, Edit, Failure, Fix
from frostline.lint.stored import diagnostic_from, diagnostic_to, failure_from, failure_to

NUMBERS = st.integers(0, 10**7)
FINDINGS = st.builds(
    Finding,
    code=st.sampled_from(sorted(CATALOGUE)),
    severity=st.sampled_from(Severity),
    message=st.text(),
    where=st.text(),
    evidence=st.text(),
    remedy=st.text(),
    safety=st.sampled_from(Safety),
    file=st.just("a.py"),
    line=NUMBERS,
    column=NUMBERS,
    source=st.text(),
    inferred=st.booleans(),
)
FIXES = st.builds(
    Fix,
    edits=st.lists(st.builds(Edit, NUMBERS, NUMBERS, st.text()), max_size=3).map(tuple),
    safety=st.sampled_from(Safety),
    title=st.text(),
)
DIAGNOSTICS = st.builds(Diagnostic, FINDINGS, NUMBERS, NUMBERS, st.none() | FIXES, NUMBERS)


@given(DIAGNOSTICS)
def test_a_diagnostic_comes_back_through_json(diagnostic: Diagnostic):
    assert diagnostic_from(json.loads(json.dumps(diagnostic_to(diagnostic))), "a.py") == diagnostic


@given(st.builds(Failure, st.just("a.py"), st.text(), NUMBERS, NUMBERS, NUMBERS))
def test_a_failure_comes_back_through_json(failure: Failure):
    assert failure_from(json.loads(json.dumps(failure_to(failure))), "a.py") == failure


def test_the_file_is_that_of_the_reader():
    finding = Finding("F101", Severity.ERROR, "typo", "main", file="a.py")
    assert diagnostic_from(diagnostic_to(Diagnostic(finding, 1, 2)), "b.py").finding.file == "b.py"
    assert "a.py" not in json.dumps(diagnostic_to(Diagnostic(finding, 1, 2)))


@pytest.mark.parametrize("name", ["code", "severity", "safety", "end", "fix", "cell"])
def test_values_that_stand_for_none_are_refused(name: str):
    whole: dict[str, Any] = diagnostic_to(Diagnostic(Finding("F101", Severity.ERROR, "typo", "main"), 1, 2))
    lacking = {key: value for key, value in whole.items() if key != name}
    with pytest.raises(KeyError):
        diagnostic_from(lacking, "a.py")
    if name not in {"code", "cell"}:
        with pytest.raises((TypeError, ValueError)):
            diagnostic_from({**whole, name: 7}, "a.py")
