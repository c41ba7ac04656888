"""One file a rule: a loop that makes its mistake, as a user would have typed it, and a twin that does it right.

``failing`` and ``twin`` take nothing, seed torch, run the loop under ``frostline.watch`` and return what was seen. The
line that the finding has to name ends in the comment ``# <- CODE``. The tests of the rules and the table in
``rule_table.py`` both run them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def marked_line(function: Callable[..., Any], code: str) -> int:
    """The number of the line of a function that ends in ``# <- CODE``."""
    lines, first = inspect.getsourcelines(function)
    return next(first + i for i, line in enumerate(lines) if line.rstrip().endswith(f"# <- {code}"))
