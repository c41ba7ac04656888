"""The rules, one file each, named after their codes."""

from __future__ import annotations

import pkgutil
from functools import lru_cache
from importlib import import_module

from frostline.lint.rule import LintRule


@lru_cache(maxsize=1)
def all_rules() -> dict[str, LintRule]:
    """Code to rule, in the order of the codes' families: F, M, N, O, S, C, H, T, D.

    Example:
        >>> all_rules()["F101"].title
        'an attribute that looks like requires_grad but means nothing was set: nothing is frozen'
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    rules: list[LintRule] = [import_module(f"{__name__}.{name}").RULE for name in names]
    return {rule.code: rule for rule in sorted(rules, key=lambda rule: ("FMNOSCHTD".index(rule.code[0]), rule.code))}
