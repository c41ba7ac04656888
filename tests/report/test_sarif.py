"""SARIF: the structure that the schema of 2.1.0 asks for, and what a code host makes of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from frostline.findings import CATALOGUE, Finding, Safety, Severity
from frostline.report.rule_text import FAMILIES, RuleText
from frostline.report.sarif import Extent, Replacement, render_sarif

FOUND = Finding(
    code="F107",
    severity=Severity.ERROR,
    message="2 normalization layers of a frozen part moved their statistics",
    where="trunk.bn1.running_var",
    evidence="trunk.bn1.running_var: moved by up to 0.195 in 4 steps\n8 frozen parameters did not move",
    remedy='frostline.freeze(model, "trunk")',
    safety=Safety.SAFE,
    paths=("trunk.bn1.running_var", "trunk.bn1.running_mean"),
    file="train.py",
    line=24,
    column=9,
    source="logits = model(x)",
    model="model",
)
NOWHERE = Finding("H602", Severity.INFO, "a head never had a gradient", "head", model="net")
RULE = RuleText(
    code="F107",
    what="Compares statistics.",
    why="They drift.",
    evidence="Digests.",
    example="model.train()\nfit()",
    instead="frostline.freeze(model)",
    remedy="Freeze it.",
    safety=Safety.SAFE,
    how_safe="safe: it makes happen what was declared",
    false_alarms="Adapted on purpose.",
    source="pytorch#86590",
)

# What the official schema says of the parts that are used here; what it does not name is not allowed.
TEXT = {"type": str}
BAG = {"type": dict}
MESSAGE = {"type": dict, "required": ["text"], "properties": {"text": TEXT, "markdown": TEXT, "properties": BAG}}
LEVEL = {"type": str, "enum": ["none", "note", "warning", "error"]}
ARTIFACT = {
    "type": dict,
    "properties": {
        "uri": {"type": str, "pattern": r"[A-Za-z0-9%/._~:@!$&'()*+,;=#?-]+"},
        "uriBaseId": TEXT,
        "description": MESSAGE,
    },
}
REGION = {
    "type": dict,
    "properties": {
        "startLine": {"type": int, "minimum": 1},
        "startColumn": {"type": int, "minimum": 1},
        "snippet": {"type": dict, "properties": {"text": TEXT}},
    },
}
LOGICAL = {"type": dict, "properties": {"name": TEXT, "fullyQualifiedName": TEXT, "kind": TEXT}}
LOCATION = {
    "type": dict,
    "properties": {
        "physicalLocation": {"type": dict, "properties": {"artifactLocation": ARTIFACT, "region": REGION}},
        "logicalLocations": {"type": list, "items": LOGICAL, "unique": True},
    },
}
DESCRIPTOR = {
    "type": dict,
    "required": ["id"],
    "properties": {
        "id": TEXT,
        "name": TEXT,
        "shortDescription": MESSAGE,
        "fullDescription": MESSAGE,
        "help": MESSAGE,
        "helpUri": TEXT,
        "defaultConfiguration": {"type": dict, "properties": {"level": LEVEL}},
        "properties": BAG,
    },
}
RESULT = {
    "type": dict,
    "required": ["message"],
    "properties": {
        "ruleId": TEXT,
        "ruleIndex": {"type": int, "minimum": 0},
        "level": LEVEL,
        "message": MESSAGE,
        "locations": {"type": list, "items": LOCATION},
        "partialFingerprints": {"type": dict, "values": TEXT},
        "baselineState": {"type": str, "enum": ["new", "unchanged", "updated", "absent"]},
        "properties": BAG,
    },
}
NOTIFICATION = {"type": dict, "required": ["message"], "properties": {"level": LEVEL, "message": MESSAGE}}
INVOCATION = {
    "type": dict,
    "required": ["executionSuccessful"],
    "properties": {
        "executionSuccessful": {"type": bool},
        "toolExecutionNotifications": {"type": list, "items": NOTIFICATION},
    },
}
DRIVER = {
    "type": dict,
    "required": ["name"],
    "properties": {"name": TEXT, "version": TEXT, "rules": {"type": list, "items": DESCRIPTOR, "unique": True}},
}
RUN = {
    "type": dict,
    "required": ["tool"],
    "properties": {
        "tool": {"type": dict, "required": ["driver"], "properties": {"driver": DRIVER}},
        "invocations": {"type": list, "items": INVOCATION},
        "originalUriBaseIds": {"type": dict, "values": ARTIFACT},
        "columnKind": {"type": str, "enum": ["utf16CodeUnits", "unicodeCodePoints"]},
        "results": {"type": list, "items": RESULT},
    },
}
LOG = {
    "type": dict,
    "required": ["version", "runs"],
    "properties": {"$schema": TEXT, "version": {"type": str, "enum": ["2.1.0"]}, "runs": {"type": list, "items": RUN}},
}


def faults(value: Any, rule: dict[str, Any], where: str = "") -> list[str]:
    """What a value breaks of a schema, in the words of the few keys that are used above."""
    if type(value) is not rule["type"]:
        return [f"{where}: a {type(value).__name__}"]
    found = [f"{where}: {value!r}" for _ in [0] if "enum" in rule and value not in rule["enum"]]
    found += [f"{where}: {value}" for _ in [0] if "minimum" in rule and value < rule["minimum"]]
    found += [f"{where}: {value}" for _ in [0] if "pattern" in rule and not re.fullmatch(rule["pattern"], value)]
    found += [f"{where}: no {name}" for name in rule.get("required", ()) if name not in value]
    if "properties" in rule:
        found += [f"{where}.{name}: unknown" for name in value if name not in rule["properties"]]
        for name, inner in rule["properties"].items():
            found += faults(value[name], inner, f"{where}.{name}") if name in value else []
    if "values" in rule:
        found += [fault for name in value for fault in faults(value[name], rule["values"], f"{where}.{name}")]
    if "items" in rule:
        found += [fault for i, one in enumerate(value) for fault in faults(one, rule["items"], f"{where}[{i}]")]
        if rule.get("unique") and len({json.dumps(one) for one in value}) < len(value):
            found.append(f"{where}: not unique")
    return found


def written(*findings: Finding, rules: tuple[RuleText, ...] = (RULE,), **more: Any) -> dict[str, Any]:
    log = json.loads(render_sarif(findings, rules, tool="frostline doctor", version="0.1.0", **more))
    assert faults(log, LOG) == []
    return log["runs"][0]


def test_a_finding_with_all_that_is_known_of_it() -> None:
    (result,) = written(FOUND)["results"]
    assert (result["ruleId"], result["ruleIndex"], result["level"]) == ("F107", 0, "error")
    (place,) = result["locations"]
    assert place["physicalLocation"] == {
        "artifactLocation": {"uri": "train.py", "uriBaseId": "SRCROOT"},
        "region": {"startLine": 24, "startColumn": 9, "snippet": {"text": "logits = model(x)"}},
    }
    assert [each["fullyQualifiedName"] for each in place["logicalLocations"]] == [
        "model.trunk.bn1.running_var",
        "model.trunk.bn1.running_mean",
    ]
    assert place["logicalLocations"][0]["name"] == "running_var"
    assert result["partialFingerprints"] == {"frostlineFinding/v1": FOUND.id}
    assert result["message"]["text"].splitlines() == [
        "2 normalization layers of a frozen part moved their statistics.",
        "Seen:",
        "  trunk.bn1.running_var: moved by up to 0.195 in 4 steps",
        "  8 frozen parameters did not move",
        "Fix (safe):",
        '  frostline.freeze(model, "trunk")',
    ]


def test_a_finding_without_a_line_has_no_place_but_a_path() -> None:
    run = written(NOWHERE)
    (result,) = run["results"]
    assert result["locations"] == [
        {"logicalLocations": [{"name": "head", "fullyQualifiedName": "net.head", "kind": "member"}]}
    ]
    assert result["level"] == "note"
    assert result["message"] == {"text": "a head never had a gradient."}


def test_rules_say_everything_and_results_point_at_them() -> None:
    other = RuleText("M203", what="Looks at modes.", safety=Safety.UNSAFE, severity=Severity.ERROR)
    run = written(FOUND, NOWHERE, rules=(other, RULE))
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["M203", "F107", "H602"], "one that was not given comes by its title"
    assert [rules[result["ruleIndex"]]["id"] for result in run["results"]] == ["F107", "H602"]
    assert rules[0]["defaultConfiguration"] == {"level": "error"}
    said = rules[1]
    assert said["shortDescription"]["text"] == CATALOGUE["F107"]
    assert said["fullDescription"]["text"] == "Compares statistics.\n\nThey drift."
    assert said["properties"] == {"tags": ["freezing"], "fixSafety": "safe"}
    assert "Fix safety\n  safe: it makes happen what was declared" in said["help"]["text"]
    assert "```python\nmodel.train()\nfit()\n```" in said["help"]["markdown"]
    assert rules[2] == {
        "id": "H602",
        "shortDescription": {"text": CATALOGUE["H602"]},
        "fullDescription": {"text": CATALOGUE["H602"]},
        "defaultConfiguration": {"level": "warning"},
        "properties": {"tags": ["heads and registration"], "fixSafety": "manual"},
    }


def test_code_with_a_fence_of_its_own_stays_inside_of_the_fence() -> None:
    run = written(FOUND, rules=(replace(RULE, example='"""\n```\n"""'),))
    assert '````python\n"""\n```\n"""\n````' in run["tool"]["driver"]["rules"][0]["help"]["markdown"]


@pytest.mark.parametrize(
    ("file", "uri"),
    [
        ("train.py", "train.py"),
        ("my code/a:b#1%.py", "my%20code/a%3Ab%231%25.py"),
        ("<ipython-input-3-ab>", "%3Cipython-input-3-ab%3E"),
        ("größe.py", "gr%C3%B6%C3%9Fe.py"),
    ],
)
def test_files_are_uris(file: str, uri: str) -> None:
    (result,) = written(replace(FOUND, file=file))["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": uri, "uriBaseId": "SRCROOT"}


def test_a_file_elsewhere_has_a_whole_uri(tmp_path: Path) -> None:
    (result,) = written(replace(FOUND, file=str(tmp_path / "a b.py")))["results"]
    artifact = result["locations"][0]["physicalLocation"]["artifactLocation"]
    assert artifact["uri"].startswith("file:///")
    assert artifact["uri"].endswith("/a%20b.py")
    assert "uriBaseId" not in artifact


def test_a_baseline_tells_new_from_known() -> None:
    states = [result["baselineState"] for result in written(FOUND, NOWHERE, known={FOUND})["results"]]
    assert states == ["unchanged", "new"]
    assert "baselineState" not in written(FOUND)["results"][0]


def test_what_is_to_be_said_of_the_run() -> None:
    (call,) = written(notes=[(Severity.ERROR, "it crashed"), (Severity.INFO, "not compiled")])["invocations"]
    assert [(note["level"], note["message"]["text"]) for note in call["toolExecutionNotifications"]] == [
        ("error", "it crashed"),
        ("note", "not compiled"),
    ]
    assert written()["invocations"] == [{"executionSuccessful": True}]


def test_a_finding_of_very_many_tensors_stays_small() -> None:
    many = replace(FOUND, paths=tuple(f"blocks.{i}.bn.running_mean" for i in range(100_000)))
    (result,) = written(many)["results"]
    assert len(result["locations"][0]["logicalLocations"]) == 50
    assert result["properties"]["entries"] == 100_000
    assert written(replace(FOUND, paths=("a", "a")))["results"][0]["locations"][0]["logicalLocations"][1:] == []


def test_the_same_findings_give_the_same_bytes() -> None:
    args: dict[str, Any] = {"tool": "t", "version": "1"}
    assert render_sarif([FOUND, NOWHERE], [RULE], **args) == render_sarif([FOUND, NOWHERE], [RULE], **args)


def test_the_check_bites() -> None:
    run = written(FOUND)
    run["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"] = 0
    run["results"][0]["lines"] = 3
    del run["invocations"][0]["executionSuccessful"]
    assert faults({"version": "2.1", "runs": [run]}, LOG) == [
        ".version: '2.1'",
        ".runs[0].invocations[0]: no executionSuccessful",
        ".runs[0].results[0].lines: unknown",
        ".runs[0].results[0].locations[0].physicalLocation.region.startLine: 0",
    ]


def test_every_code_has_a_family() -> None:
    assert {code[0] for code in CATALOGUE} == set(FAMILIES)
    assert all(RuleText(code).family for code in CATALOGUE)


def test_a_finding_in_source_has_its_end_and_its_fix() -> None:
    replacement = Replacement(24, 10, 24, 15, "net")
    results = json.loads(
        render_sarif(
            [FOUND, NOWHERE], [], tool="t", version="1", extents=[Extent(25, 3, "Rename", (replacement,)), Extent()]
        )
    )["runs"][0]["results"]
    region = results[0]["locations"][0]["physicalLocation"]["region"]
    assert (region["startLine"], region["startColumn"], region["endLine"], region["endColumn"]) == (24, 9, 25, 3)
    assert results[0]["fixes"] == [
        {
            "description": {"text": "Rename"},
            "artifactChanges": [
                {
                    "artifactLocation": {"uri": "train.py", "uriBaseId": "SRCROOT"},
                    "replacements": [
                        {
                            "deletedRegion": {"startLine": 24, "startColumn": 10, "endLine": 24, "endColumn": 15},
                            "insertedContent": {"text": "net"},
                        }
                    ],
                }
            ],
        }
    ]
    assert "fixes" not in results[1]
    with pytest.raises(ValueError, match="zip"):
        render_sarif([FOUND, NOWHERE], [], tool="t", version="1", extents=[Extent()])
