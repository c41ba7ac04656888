"""Findings: codes come from one catalogue, and a finding prints and serializes itself."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from frostline.findings import CATALOGUE, Finding, Safety, Severity

FULL = Finding(
    "F107",
    Severity.WARNING,
    "38 statistics move although their parameters are frozen",
    "trunk",
    evidence="trunk.bn1.running_mean moved by 0.3 in one step",
    remedy='freeze(model, "trunk")',
    safety=Safety.SAFE,
    paths=("trunk.bn1", "trunk.bn2"),
)


def test_the_catalogue_has_well_formed_codes_and_one_line_each() -> None:
    for code, line in CATALOGUE.items():
        assert re.fullmatch(r"[A-Z][0-9]{3}", code)
        assert line
        assert "\n" not in line
        assert line[0].islower()
        assert not line.endswith(".")
    assert len(set(CATALOGUE.values())) == len(CATALOGUE)


def test_released_codes_keep_their_meaning() -> None:
    pinned = {
        "F107": "parameters are frozen, but normalization statistics still move",
        "F113": "a frozen tensor is also used by a part that is not frozen",
        "F121": "parameters next to a frozen part stay trainable",
        "M205": "a part draws random numbers in eval mode too",
        "N302": "a normalization layer has no running statistics and depends on the batch in eval mode too",
    }
    assert {code: CATALOGUE[code] for code in pinned} == pinned


def test_a_code_outside_the_catalogue_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^finding 'X999' is not in the catalogue of rule codes$"):
        Finding("X999", Severity.ERROR, "?", "")


def test_it_prints_what_is_known() -> None:
    assert str(FULL) == (
        "F107 warning: 38 statistics move although their parameters are frozen\n"
        "  seen: trunk.bn1.running_mean moved by 0.3 in one step\n"
        '  fix:  freeze(model, "trunk")'
    )
    assert (
        str(Finding("F121", Severity.INFO, "cls_token stays trainable", "")) == "F121 info: cls_token stays trainable"
    )


def test_json_round_trip() -> None:
    text = json.dumps(FULL.to_dict(), allow_nan=False)
    row = json.loads(text)
    assert row == {
        "code": "F107",
        "severity": "warning",
        "message": "38 statistics move although their parameters are frozen",
        "where": "trunk",
        "evidence": "trunk.bn1.running_mean moved by 0.3 in one step",
        "remedy": 'freeze(model, "trunk")',
        "safety": "safe",
        "paths": ["trunk.bn1", "trunk.bn2"],
        "file": "",
        "line": 0,
        "column": 0,
        "source": "",
        "model": "",
        "inferred": False,
        "id": FULL.id,
    }
    assert row.pop("id") == FULL.id
    again = Finding(
        **{
            **row,
            "severity": Severity(row["severity"]),
            "safety": Safety(row["safety"]),
            "paths": tuple(row["paths"]),
        }
    )
    assert again == FULL
    assert list(row) == [f.name for f in dataclasses.fields(Finding)]


def test_it_is_a_value() -> None:
    assert len({FULL, dataclasses.replace(FULL)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.code = "F113"  # type: ignore[misc]
    assert Finding("F113", Severity.INFO, "m", "w").safety is Safety.MANUAL


def test_the_words_of_severity_and_safety_are_pinned() -> None:
    assert [s.value for s in Severity] == ["error", "warning", "info"]
    assert [s.value for s in Safety] == ["safe", "unsafe", "manual"]


def test_findings_and_errors_need_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport frostline.findings, frostline.errors, frostline.tables"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
