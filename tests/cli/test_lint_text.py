"""A finding in a line and in full, the summary, and the table of counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frostline.cli.lint_sources import Sources
from frostline.cli.lint_text import Full, Look, concise, failure_line, is_mended, place, statistics, summary
from frostline.cli.paint import Paint
from frostline.findings import Severity
from frostline.lint.diagnostic import Edit, Failure, Fix, LintReport
from frostline.lint.rule import LintRule

ESCAPE = "\x1b"


@pytest.fixture(autouse=True)
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lint_samples: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(lint_samples.TRAIN)


@pytest.fixture(autouse=True)
def rules(monkeypatch: pytest.MonkeyPatch, lint_samples: Any) -> None:
    """One rule whose reason is known here, whatever the real ones say."""
    safety = lint_samples.MISSPELT.finding.safety
    rule = LintRule(
        "F101",
        "",
        "Nothing is frozen,\nbecause torch ignores it. More.",
        "",
        "",
        "",
        safety,
        "",
        "",
        "",
        (),
        lambda _: iter(()),
    )
    monkeypatch.setattr("frostline.lint.rules.all_rules", lambda: {"F101": rule})


def full(diagnostic: Any, **look: Any) -> list[str]:
    return list(Full(Look(**look), Sources()).lines(diagnostic))


# In a line


def test_a_place_is_what_editors_make_links_of() -> None:
    assert place("a\x1bb.py", 3, 5) == "a\\x1bb.py:3:5"
    assert place("a.py", 3, 0) == "a.py:3:1"
    assert failure_line(Failure("a.py", "permission denied")) == "a.py: permission denied"
    assert failure_line(Failure("a.ipynb", "invalid syntax", 2, 3, cell=4)) == "a.ipynb:cell 4:2:3: invalid syntax"


def test_concise_marks_what_is_mended(lint_samples: Any) -> None:
    safe, unsafe = lint_samples.MISSPELT, lint_samples.LISTED
    assert concise(safe, Look()) == "train.py:2:5: F101 [*] `p.require_grad` is no attribute of a parameter"
    assert concise(unsafe, Look()) == "train.py:3:10: H601 layers are kept in a list"
    assert concise(unsafe, Look(unsafe=True)) == "train.py:3:10: H601 [*] layers are kept in a list"
    cell = lint_samples.in_cell(safe, "a.ipynb", 3)
    assert concise(cell, Look()).startswith("a.ipynb:cell 3:2:5: F101 ")


def test_concise_in_colour_says_the_same(lint_samples: Any) -> None:
    found = concise(lint_samples.LISTED, Look(paint=Paint(True)))
    assert found == "\x1b[1mtrain.py:3:10\x1b[0m: \x1b[1;33mH601\x1b[0m layers are kept in a list"


def test_what_takes_a_person_is_never_mended(lint_samples: Any) -> None:
    assert [is_mended(each, unsafe=True) for each in lint_samples.REPORT.diagnostics] == [True, True, False]
    assert [is_mended(each, unsafe=False) for each in lint_samples.REPORT.diagnostics] == [True, False, False]


# In full


def test_full_shows_the_line_what_was_seen_why_and_the_fix(lint_samples: Any) -> None:
    assert full(lint_samples.MISSPELT) == [
        "F101 error: `p.require_grad` is no attribute of a parameter",
        " --> train.py:2:5",
        "  |",
        "1 | for p in net.parameters():",
        "2 |     p.require_grad = False",
        "  |     ^^^^^^^^^^^^^^",
        "3 | layers = [",
        "  = seen: p comes from net.parameters()",
        "  = why:  Nothing is frozen, because torch ignores it.",
        "  = fix:  Rename to requires_grad (safe, with --fix)",
        "          - p.require_grad = False",
        "          + p.requires_grad = False",
        "  = rule: frostline rule F101",
    ]


def test_a_fix_that_may_change_meaning_says_so_and_what_has_none_has_a_remedy(lint_samples: Any) -> None:
    unsafe, manual = full(lint_samples.LISTED), full(lint_samples.EVAL)
    assert unsafe[-6:] == [
        "  = fix:  Wrap into a ModuleList (unsafe, with --fix --unsafe-fixes)",
        "          - layers = [",
        "          + layers = nn.ModuleList([",
        "          - ]",
        "          + ])",
        "  = rule: frostline rule H601",
    ]
    assert manual[0] == "F106 info: eval() freezes nothing"
    assert manual[-3:] == [
        "  = fix:  also:",
        "              net.requires_grad_(False)",
        "  = rule: frostline rule F106",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_all_lines_fit(lint_samples: Any, width: int) -> None:
    long = replace(
        lint_samples.MISSPELT,
        finding=replace(lint_samples.MISSPELT.finding, message="some words " * 30, evidence="other words " * 30),
    )
    assert max(map(len, full(long, width=width))) <= width


def test_colour_changes_nothing_but_colour(lint_samples: Any) -> None:
    import re

    for each in lint_samples.REPORT.diagnostics:
        painted = full(each, paint=Paint(True))
        assert any(ESCAPE in line for line in painted)
        assert [re.sub(r"\x1b\[[\d;]*m", "", line) for line in painted] == full(each)


def test_without_its_file_a_finding_keeps_its_line_and_its_remedy(lint_samples: Any) -> None:
    Path("train.py").unlink()
    found = full(lint_samples.MISSPELT)
    assert found[2] == "  | p.require_grad = False"
    assert "  = fix:  p.requires_grad = False" in found


def test_names_from_files_cannot_play_with_a_terminal(lint_samples: Any) -> None:
    Path("train.py").write_text("p.\x1b[2Jrequire_grad\n")
    finding = replace(lint_samples.MISSPELT.finding, message="\x1b[2J", evidence="\x07", remedy="\x1b]0;x", line=1)
    assert ESCAPE not in "".join(full(replace(lint_samples.MISSPELT, finding=finding, fix=None)))


def test_a_long_fix_is_cut(lint_samples: Any) -> None:
    text = "\n".join(f"line{number}" for number in range(30))
    fix = Fix((Edit(88, 98, text),), lint_samples.MISSPELT.fix.safety, "Rewrite")
    found = full(replace(lint_samples.EVAL, fix=fix))
    assert found[-2] == "          ... 19 more lines; --diff shows all"
    assert sum(line.startswith("          + ") for line in found) == 11


# Summary and counts


def test_the_summary_counts_kinds_files_and_fixes(lint_samples: Any) -> None:
    report = lint_samples.REPORT
    assert summary(report, Look()) == [
        "Found 1 error, 1 warning, 1 note in 4 files (1 fixable with --fix).",
        "1 hidden fix can be had with --unsafe-fixes.",
    ]
    assert summary(report, Look(unsafe=True)) == [
        "Found 1 error, 1 warning, 1 note in 4 files (2 fixable with --fix --unsafe-fixes)."
    ]
    left = LintReport((lint_samples.EVAL,), files=1)
    assert summary(left, Look(), fixed=2) == ["Fixed 2; 1 note left in 1 file."]


@pytest.mark.parametrize(
    ("report", "fixed", "said"),
    [
        (LintReport(files=12), 0, "All 12 files clean."),
        (LintReport(files=1), 0, "1 file clean."),
        (LintReport(files=2), 3, "Fixed 3; all 2 files clean."),
        (LintReport(), 0, "No Python files found."),
        (LintReport(failures=(Failure("a.py", "not UTF-8"),), files=3), 0, "2 files clean."),
        (LintReport(failures=(Failure("a.py", "not UTF-8"),), files=1), 0, "No file could be linted."),
        (LintReport(failures=(Failure("a.py", "permission denied"),)), 0, "No file could be linted."),
    ],
)
def test_without_findings_it_says_what_was_clean(report: LintReport, fixed: int, said: str) -> None:
    assert summary(report, Look(), fixed=fixed) == [said]


def test_statistics_have_the_commonest_first(lint_samples: Any) -> None:
    twice = replace(lint_samples.EVAL, finding=replace(lint_samples.EVAL.finding, severity=Severity.ERROR))
    report = LintReport((lint_samples.EVAL, twice, lint_samples.MISSPELT, lint_samples.LISTED), files=1)
    table = statistics(report, Look(width=60)).splitlines()
    assert [line.split()[:2] for line in table[2:]] == [["2", "F106"], ["1", "F101"], ["1", "H601"]]
    assert [line.split()[-1] for line in table[2:]] == ["-", "1", "-"]
    assert max(map(len, table)) <= 60
    assert all(line.isascii() for line in table)
    assert "─" in statistics(report, Look(more="…"))
