"""The linter's rules as the texts that pages and SARIF are made of."""

from __future__ import annotations

from frostline.lint.rule import LintRule
from frostline.lint.rules import all_rules
from frostline.report.rule_text import RuleText


def lint_rule_texts() -> dict[str, RuleText]:
    """Code to text of every rule of the linter."""
    return {code: lint_rule_text(rule) for code, rule in all_rules().items()}


def lint_rule_text(rule: LintRule) -> RuleText:
    """What a rule of the linter has to say."""
    return RuleText(
        code=rule.code,
        what=rule.what,
        why=rule.why,
        example=rule.example,
        instead=rule.instead,
        remedy=rule.remedy,
        safety=rule.safety,
        how_safe=rule.how_safe,
        false_alarms=rule.false_alarms,
        source=rule.source,
    )
