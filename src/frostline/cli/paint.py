"""Colour for a terminal without rich, which takes as long to import as a small file takes to lint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Protocol

# ECMA-48, Select Graphic Rendition.
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}


class Paint:
    r"""Wraps texts into the sequences that colour them, or leaves them as they are.

    Args:
        on: whether there is colour.

    Example:
        >>> Paint(False)("F101", "bold", "red"), Paint(True)("F101", "bold", "red")
        ('F101', '\x1b[1;31mF101\x1b[0m')
    """

    def __init__(self, on: bool) -> None:
        self.on = on

    def __call__(self, text: str, *styles: str) -> str:
        """The text in these styles: ``bold``, ``dim`` and the names of colours."""
        if not self.on or not text or not styles:
            return text
        return f"\x1b[{';'.join(_STYLES[style] for style in styles)}m{text}\x1b[0m"


class Stream(Protocol):
    """What is asked of a stream."""

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        ...


def wants_colour(stream: Stream, environment: Mapping[str, str] | None = None) -> bool:
    """Whether what is printed there is to be in colour: in a terminal that can, unless ``NO_COLOR`` is set.

    ``FORCE_COLOR`` asks for it everywhere, as for the log of a build server.

    Args:
        stream: where to.
        environment: that of the process, by default.
    """
    environment = os.environ if environment is None else environment
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR"):
        return True
    return stream.isatty() and environment.get("TERM") != "dumb"
