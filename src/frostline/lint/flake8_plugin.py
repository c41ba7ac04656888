"""The linter as checks of flake8, which needs one entry point for every beginning of its codes.

flake8 selects and ignores by codes, so all rules run, and ``[tool.frostline.lint]`` is not read. It sees one file at a
time: a function of another file is not looked into.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from tokenize import detect_encoding

from frostline.lint.diagnostic import LintReport
from frostline.lint.settings import Settings
from frostline.lint.source import HEAD


class Family:
    """The checks whose codes begin alike, on one file.

    Args:
        tree: asked for because flake8 then takes the class for a check of whole files; it is not used.
        filename: as flake8 prints it.
        lines: the file, each line with its end.
    """

    beginning = ""

    def __init__(self, tree: ast.AST, filename: str, lines: Sequence[str]) -> None:
        del tree
        self._filename, self._lines = filename, lines

    def run(self) -> Iterator[tuple[int, int, str, type[Family]]]:
        """Line from 1, column from 0, code and message: what flake8 asks for."""
        for diagnostic in _report(_encoded("".join(self._lines)), self._filename).diagnostics:
            finding = diagnostic.finding
            if finding.code.startswith(self.beginning):
                yield finding.line, finding.column - 1, f"{finding.code} {finding.message}", type(self)


class Freezing(Family):
    """Mistakes about freezing."""

    beginning = "F1"


class Modes(Family):
    """Mistakes about train and eval mode."""

    beginning = "M2"


class Norms(Family):
    """Mistakes about normalization statistics."""

    beginning = "N3"


class Optimizers(Family):
    """Mistakes about optimizers and the loop."""

    beginning = "O4"


class Schedules(Family):
    """Mistakes about schedules."""

    beginning = "S45"


class Checkpoints(Family):
    """Mistakes about checkpoints."""

    beginning = "C5"


class Heads(Family):
    """Mistakes about heads and registration."""

    beginning = "H6"


class MetaLearning(Family):
    """Mistakes about meta-learning."""

    beginning = "T7"


class Distributed(Family):
    """Mistakes about distributed and compiled runs."""

    beginning = "D8"


def _encoded(text: str) -> bytes:
    """The text as its own declaration says it is written, so that what reads it finds the same characters."""
    data = text.encode(errors="replace")
    if b"coding" not in data[:HEAD]:
        return data
    try:
        return text.encode(detect_encoding(BytesIO(data).readline)[0])
    except (SyntaxError, LookupError, UnicodeEncodeError):
        return data


@lru_cache(maxsize=1)
def _report(data: bytes, name: str) -> LintReport:
    """What is found in a file, once for all families: flake8 asks them one after another."""
    from frostline.lint.run import lint_source

    return lint_source(data, name, Settings())
