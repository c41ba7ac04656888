"""The table of others' reports points at tests and rules that exist."""

from __future__ import annotations

import re
from pathlib import Path

from frostline.findings import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "peer-reports.md").read_text()


def rows() -> list[list[str]]:
    lines = [line for line in TEXT.splitlines() if line.startswith("|") and not line.startswith(("| report", "|---"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_row_names_a_report_a_verdict_and_a_test():
    assert len(rows()) > 40
    for report, happens, here, shown in rows():
        assert re.search(r"#\d+|PR\d+", report), report
        assert happens
        assert here
        places = re.findall(r"`([\w/]+(?:\.py|/))`", shown)
        assert places, shown
        for place in places:
            assert (ROOT / "tests" / place).exists(), place


def test_the_rules_that_it_names_exist():
    named = set(re.findall(r"\b[A-Z]\d{3}\b", TEXT))
    assert named
    assert named <= set(CATALOGUE)
