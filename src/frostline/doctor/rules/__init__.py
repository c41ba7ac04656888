"""The rules, one file each, named after their codes."""

from __future__ import annotations

import pkgutil
from functools import lru_cache
from importlib import import_module

from frostline.doctor.rule import Rule


@lru_cache(maxsize=1)
def all_rules() -> dict[str, Rule]:
    """Code to rule, in the order of the codes' families: F, M, N, O, S, C, H, T, D.

    Example:
        >>> all_rules()["F107"].title
        'parameters are frozen, but normalization statistics still move'
    """
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    rules: list[Rule] = [import_module(f"{__name__}.{name}").RULE for name in names]
    return {rule.code: rule for rule in sorted(rules, key=lambda rule: ("FMNOSCHTD".index(rule.code[0]), rule.code))}
