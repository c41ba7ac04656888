"""The catalogue of rules as a whole: complete, documented, planted, tested, and free of circles."""

from __future__ import annotations

import ast
import importlib
import textwrap
from pathlib import Path

import clean_loops
import pytest

from frostline.doctor import all_rules, examine
from frostline.findings import CATALOGUE, Severity

ROOT = Path(__file__).resolve().parents[2]
RULES = all_rules()
# Told from source alone, found elsewhere, or by another verb.
NOT_AT_RUN_TIME = {"H604", "O414", "F121", "N309"}


def test_every_row_that_can_be_seen_at_run_time_has_its_rule():
    assert set(CATALOGUE) - set(RULES) == NOT_AT_RUN_TIME
    assert list(RULES) == sorted(RULES, key=lambda code: ("FMNOSCHTD".index(code[0]), code))


@pytest.mark.parametrize("code", RULES)
def test_a_rule_is_documented_planted_and_tested(code):
    rule = RULES[code]
    module = importlib.import_module(f"frostline.doctor.rules.{code.lower()}")
    assert module.RULE is rule
    texts = [rule.what, rule.why, rule.evidence, rule.remedy, rule.how_safe, rule.false_alarms, rule.source]
    assert all(len(text) >= 4 for text in texts)
    assert rule.how_safe.startswith(rule.safety.value)
    for example in (rule.example, rule.instead):
        ast.parse(textwrap.dedent(example))
    planted = importlib.import_module(f"planted_loops.{code.lower()}")
    assert callable(planted.failing)
    assert callable(planted.twin)
    assert (ROOT / "tests" / "doctor" / "rules" / f"test_{code.lower()}.py").exists()


def test_no_two_rules_explain_each_other_away():
    for code, rule in RULES.items():
        assert set(rule.explains) <= set(RULES)
        assert not [other for other in rule.explains if code in RULES[other].explains]


QUICK = [name for name in clean_loops.HABITS if name not in {"torch.compile", "transformers BERT"}]


@pytest.mark.parametrize("name", QUICK)
def test_habits_that_look_odd_and_are_right_are_let_be(name):
    seen = clean_loops.run(name)
    assert [str(f) for f in examine(seen).worse_than(Severity.WARNING)] == []
    assert seen.missed == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in clean_loops.LOOPS if n not in QUICK])
def test_nothing_is_found_in_a_healthy_loop(name):
    seen = clean_loops.run(name)
    assert [str(f) for f in examine(seen).worse_than(Severity.WARNING)] == []
    assert [line for line in seen.missed if "torch.compile is in use" not in line] == []
