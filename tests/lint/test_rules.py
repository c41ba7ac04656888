"""The rules of the linter as a whole: complete, documented, tested, and their own examples are found and mended."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from frostline.findings import CATALOGUE, Safety
from frostline.lint.rules import all_rules

ROOT = Path(__file__).resolve().parents[2]
RULES = all_rules()
# What no reading of source can tell: the rows of the catalogue without a static check.
NOT_IN_SOURCE = {
    *("F112", "F113", "F116", "F120", "F121"),
    *("M203", "M209", "M210"),
    *("N308", "N309"),
    *("O409", "O413"),
    "S454",
    *("C502", "C504", "C505", "C506", "C508", "C509", "C511"),
    "H602",
    "T703",
    *("D805", "D807", "D808"),
}


def test_every_row_that_can_be_told_from_source_has_its_rule():
    assert set(CATALOGUE) - set(RULES) == NOT_IN_SOURCE
    assert list(RULES) == sorted(RULES, key=lambda code: ("FMNOSCHTD".index(code[0]), code))


@pytest.mark.parametrize("code", RULES)
def test_a_rule_is_documented_and_tested(code):
    rule = RULES[code]
    assert importlib.import_module(f"frostline.lint.rules.{code.lower()}").RULE is rule
    texts = [rule.what, rule.why, rule.remedy, rule.how_safe, rule.false_alarms, rule.source]
    assert all(len(text) >= 4 for text in texts)
    assert rule.how_safe.startswith(rule.safety.value)
    assert rule.triggers
    assert all(len(trigger) >= 1 for trigger in rule.triggers)
    assert (ROOT / "tests" / "lint" / "rules" / f"test_{code.lower()}.py").exists()


@pytest.mark.parametrize("code", RULES)
def test_its_example_is_found_and_the_right_way_is_not(code, find):
    rule = RULES[code]
    for text in (rule.example, rule.instead):
        ast.parse(text)
    assert find(rule.example, code), rule.example
    assert not find(rule.instead, code), rule.instead


@pytest.mark.parametrize("code", RULES)
def test_at_least_five_true_cases_and_five_look_alikes_are_tested(code):
    text = (ROOT / "tests" / "lint" / "rules" / f"test_{code.lower()}.py").read_text(encoding="utf-8")
    sizes = {"TRUE": 0, "SILENT": 0}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict):
            name = node.targets[0].id
            if name in sizes:
                sizes[name] = len(node.value.values)
    assert sizes["TRUE"] >= 5, sizes
    assert sizes["SILENT"] >= 5, sizes


@pytest.mark.parametrize("code", [code for code, rule in RULES.items() if rule.safety is not Safety.MANUAL])
def test_a_rule_with_a_fix_tests_it(code):
    text = (ROOT / "tests" / "lint" / "rules" / f"test_{code.lower()}.py").read_text(encoding="utf-8")
    assert re.search(r"\bfixed\(", text)


def test_no_finding_without_a_trigger():
    """A file is read by a rule only if it holds a trigger; one-letter triggers would make that pointless."""
    short = {code for code, rule in RULES.items() if any(len(trigger) < 3 for trigger in rule.triggers)}
    assert short <= {"O408"}
