"""What a rule of the linter is: one mistake, how it is told from source, and all that a user should know about it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frostline.findings import CATALOGUE, Safety, Severity

if TYPE_CHECKING:
    from frostline.lint.diagnostic import Edit
    from frostline.lint.file_view import FileView


@dataclass(frozen=True)
class Violation:
    """One place where a rule is broken.

    Attributes:
        node: what is wrong; its range is underlined.
        message: one line: what is wrong here, with names from the source.
        evidence: what the rule saw, a line each: other lines that matter, what a name was taken for.
        remedy: the narrow fix, as the user would type it.
        severity: how bad it is here; the receiver decides.
        edits: what mends it; empty where that takes a person.
        safety: how safe the edits are.
        title: what the edits do, in the imperative.
        inferred: a heuristic was needed: a name, or what a function given from outside might do.
    """

    node: ast.AST
    message: str
    evidence: tuple[str, ...] = ()
    remedy: str = ""
    severity: Severity = Severity.ERROR
    edits: tuple[Edit, ...] = ()
    safety: Safety = Safety.MANUAL
    title: str = ""
    inferred: bool = False


@dataclass(frozen=True)
class LintRule:
    """One mistake of the catalogue, told from source.

    Attributes:
        code: its code in the catalogue.
        what: what the rule looks for.
        why: why it is bad: what the user sees, and what it costs.
        example: code that makes the mistake.
        instead: the same code done right.
        remedy: how it is mended.
        safety: the safest that its fixes are: ``safe``, ``unsafe``, or ``manual`` where it has none.
        how_safe: the same in a sentence, with its reason.
        false_alarms: when it speaks although nothing is wrong, and how to silence it.
        source: a public report, a paper or a file; ``none found`` where there is none.
        triggers: a file is looked at only if its text holds one of these; they make the linter fast. Each finding must
            need one of them.
        check: finds the violations in one file.
    """

    code: str
    what: str
    why: str
    example: str
    instead: str
    remedy: str
    safety: Safety
    how_safe: str
    false_alarms: str
    source: str
    triggers: tuple[str, ...]
    check: Callable[[FileView], Iterator[Violation]]

    @property
    def title(self) -> str:
        """The mistake in one line, as the catalogue has it."""
        return CATALOGUE[self.code]
