"""Shows docstrings as they are meant: the ``Example:`` as code, and names as code.

The reader of docstrings knows ``Examples:`` alone, and takes what stands below the singular for Markdown; and it knows
no roles such as ``:func:``.
"""

from __future__ import annotations

import re

import griffe

_HEADING = re.compile(r"^Example:$", re.MULTILINE)
_ROLE = re.compile(r":(?:py:)?(?:attr|class|data|exc|func|meth|mod):`~?([^`]+)`")


class Plainly(griffe.Extension):
    """Changes docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for each module, class, function and attribute that was read."""
        if obj.docstring is not None:
            obj.docstring.value = _ROLE.sub(r"`\1`", _HEADING.sub("Examples:", obj.docstring.value))
