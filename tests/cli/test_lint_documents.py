"""What programs read: JSON, SARIF, and GitHub's lines, with and without a baseline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frostline.cli.lint_documents import Outcome, as_github, as_json, as_sarif
from frostline.cli.lint_sources import Sources
from frostline.lint.diagnostic import LintReport


@pytest.fixture(autouse=True)
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lint_samples: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(lint_samples.TRAIN)


@pytest.fixture
def half_known(lint_samples: Any) -> Outcome:
    """The first of three findings is known."""
    return Outcome(lint_samples.REPORT, known=(lint_samples.MISSPELT.finding,))


def sarif(outcome: Outcome) -> dict[str, Any]:
    return json.loads(as_sarif(outcome, Sources()))["runs"][0]


# Baseline


def test_what_is_known_is_not_new(lint_samples: Any, half_known: Outcome) -> None:
    assert half_known.new.diagnostics == (lint_samples.LISTED, lint_samples.EVAL)
    assert half_known.new.failures == lint_samples.REPORT.failures
    assert Outcome(lint_samples.REPORT).new == lint_samples.REPORT


def test_of_equal_lines_only_those_that_were_counted_are_known(lint_samples: Any) -> None:
    first = lint_samples.MISSPELT
    second = replace(first, finding=replace(first.finding, line=9))
    assert first.finding.id == second.finding.id
    outcome = Outcome(LintReport((first, second)), known=(first.finding,))
    assert outcome.new.diagnostics == (second,)
    assert [row["known"] for row in as_json(outcome, unsafe=False)["findings"]] == [True, False]
    assert [result["baselineState"] for result in sarif(outcome)["results"]] == ["unchanged", "new"]


# JSON


def test_json_is_the_report_and_what_was_fixed(lint_samples: Any) -> None:
    told = as_json(Outcome(lint_samples.REPORT, fixed=(lint_samples.EVAL,)), unsafe=False)
    assert json.loads(json.dumps(told)) == told
    assert told == lint_samples.REPORT.to_dict() | {"fixed": [lint_samples.EVAL.to_dict()]}
    assert told["schema_version"] == 1
    assert told["failures"] == [{"file": "broken.py", "message": "invalid syntax", "line": 3, "column": 7, "cell": 0}]


def test_json_with_a_baseline_says_what_is_known(half_known: Outcome) -> None:
    told = as_json(half_known, unsafe=False)
    assert [(row["code"], row["known"]) for row in told["findings"]] == [
        ("F101", True),
        ("H601", False),
        ("F106", False),
    ]
    assert told["gone"] == []


def test_json_counts_new_findings_where_that_is_asked_for(lint_samples: Any, half_known: Outcome) -> None:
    assert [
        (row["code"], row["count"], row["fixable"])
        for row in as_json(half_known, unsafe=True, statistics=True)["statistics"]
    ] == [("F106", 1, 0), ("H601", 1, 1)]
    assert "statistics" not in as_json(half_known, unsafe=True)


# SARIF


def test_sarif_has_the_whole_range_and_the_fix(lint_samples: Any) -> None:
    run = sarif(Outcome(lint_samples.REPORT))
    assert run["tool"]["driver"]["name"] == "frostline lint"
    first, second, third = run["results"]
    region = first["locations"][0]["physicalLocation"]["region"]
    assert {name: region[name] for name in region if name != "snippet"} == {
        "startLine": 2,
        "startColumn": 5,
        "endLine": 2,
        "endColumn": 19,
    }
    assert first["fixes"] == [
        {
            "description": {"text": "Rename to requires_grad"},
            "artifactChanges": [
                {
                    "artifactLocation": {"uri": "train.py", "uriBaseId": "SRCROOT"},
                    "replacements": [
                        {
                            "deletedRegion": {"startLine": 2, "startColumn": 7, "endLine": 2, "endColumn": 19},
                            "insertedContent": {"text": "requires_grad"},
                        }
                    ],
                }
            ],
        }
    ]
    assert len(second["fixes"][0]["artifactChanges"][0]["replacements"]) == 2
    assert "fixes" not in third
    assert [result["level"] for result in run["results"]] == ["error", "warning", "note"]


def test_sarif_says_which_files_were_not_linted(lint_samples: Any) -> None:
    notes = sarif(Outcome(lint_samples.REPORT))["invocations"][0]["toolExecutionNotifications"]
    assert notes == [{"level": "error", "message": {"text": "not linted: broken.py:3:7: invalid syntax"}}]


def test_sarif_of_a_notebook_names_the_cell_and_no_line_of_its_json(lint_samples: Any) -> None:
    cell = lint_samples.in_cell(lint_samples.MISSPELT, "a.ipynb", 3)
    (result,) = sarif(Outcome(LintReport((cell,)), known=(cell.finding,)))["results"]
    assert result["message"]["text"].startswith("cell 3, line 2: `p.require_grad`")
    assert result["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "a.ipynb", "uriBaseId": "SRCROOT"}
    }
    assert result["baselineState"] == "unchanged"
    assert "fixes" not in result


def test_sarif_lists_the_rules_of_the_linter(lint_samples: Any) -> None:
    from frostline.lint.rules import all_rules

    listed = [rule["id"] for rule in sarif(Outcome(LintReport()))["tool"]["driver"]["rules"]]
    assert listed == list(all_rules())


# GitHub


def test_github_has_a_line_for_each_place(lint_samples: Any) -> None:
    assert as_github(Outcome(lint_samples.REPORT)) == [
        (
            "::error title=frostline F101,file=train.py,line=2,col=5,endLine=2,endColumn=19::"
            "`p.require_grad` is no attribute of a parameter%0Afix: p.requires_grad = False"
        ),
        (
            "::warning title=frostline H601,file=train.py,line=3,endLine=5::"
            "layers are kept in a list%0Afix: layers = nn.ModuleList([...])"
        ),
        (
            "::notice title=frostline F106,file=train.py,line=6,col=1,endLine=6,endColumn=11::"
            "eval() freezes nothing%0Afix: also:%0A    net.requires_grad_(False)"
        ),
        "::error title=frostline,file=broken.py,line=3,col=7::not linted: invalid syntax",
    ]


def test_github_gets_nothing_that_ends_a_message_or_a_property(lint_samples: Any) -> None:
    finding = replace(lint_samples.EVAL.finding, file="a,b:c%.py", message="100 %\r\nof: it, all", remedy="")
    (line, *_) = as_github(Outcome(LintReport((replace(lint_samples.EVAL, finding=finding),))))
    assert line == (
        "::notice title=frostline F106,file=a%2Cb%3Ac%25.py,line=6,col=1,endLine=6,endColumn=11::"
        "100 %25%0D%0Aof: it, all"
    )


def test_github_has_no_lines_for_cells_and_no_known_findings(lint_samples: Any, half_known: Outcome) -> None:
    cell = lint_samples.in_cell(lint_samples.EVAL, "a.ipynb", 2)
    (line,) = as_github(Outcome(LintReport((cell,))))
    assert line.startswith("::notice title=frostline F106,file=a.ipynb::cell 2, line 6: eval() freezes nothing")
    assert [line.split(",")[0] for line in as_github(half_known)][:2] == [
        "::warning title=frostline H601",
        "::notice title=frostline F106",
    ]
