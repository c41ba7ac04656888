"""Floor 3: the mistakes of the catalogue in source code, before anything runs; never imports torch.

Names are imported when they are first used, because the command starts with this package.

Example:
    >>> from frostline import lint
    >>> report = lint.lint_source(b"model.eval", "train.py", lint.Settings())
    >>> [(each.finding.code, each.finding.line) for each in report.diagnostics]
    [('M204', 1)]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frostline.lint.diagnostic import Diagnostic as Diagnostic
    from frostline.lint.diagnostic import LintReport as LintReport
    from frostline.lint.fix_files import FixReport as FixReport
    from frostline.lint.fix_files import fix_paths as fix_paths
    from frostline.lint.rules import all_rules as all_rules
    from frostline.lint.run import lint_paths as lint_paths
    from frostline.lint.run import lint_source as lint_source
    from frostline.lint.settings import Settings as Settings
    from frostline.lint.settings import read_settings as read_settings

_NAMES = {
    "Diagnostic": "diagnostic",
    "FixReport": "fix_files",
    "LintReport": "diagnostic",
    "Settings": "settings",
    "all_rules": "rules",
    "fix_paths": "fix_files",
    "lint_paths": "run",
    "lint_source": "run",
    "read_settings": "settings",
}


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"frostline.lint.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'frostline.lint' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
