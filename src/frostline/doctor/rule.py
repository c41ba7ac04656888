"""What a rule is: one mistake, how it is told from what was seen, and all that a user should know about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from frostline.findings import CATALOGUE, Safety, Severity

if TYPE_CHECKING:
    from frostline.audit.places import Place
    from frostline.audit.seen import Seen


@dataclass(frozen=True)
class Found:
    """One cause that a rule has found; all tensors that suffer from it are in it.

    Attributes:
        message: one line: what is wrong, with figures.
        model: the name of the model; empty where it concerns none.
        paths: every path concerned, the worst first; dotted paths in that model.
        evidence: what was seen, a line each, at most six: before and after, the operator, the user's line.
        remedy: the narrow fix, as the user would type it.
        severity: how bad it is here.
        safety: how safe the remedy is here.
        place: the user's line that made the mistake, or the nearest to it that is known.
        repair: does the remedy in memory and says in a few words what it did; only where ``safety`` is ``safe``.
        inferred: the contract that was broken was inferred, not declared.
    """

    message: str
    model: str = ""
    paths: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    remedy: str = ""
    severity: Severity = Severity.ERROR
    safety: Safety = Safety.MANUAL
    place: Place | None = None
    repair: Callable[[], str] | None = field(default=None, compare=False, repr=False)
    inferred: bool = False


@dataclass(frozen=True)
class Rule:
    """One mistake of the catalogue.

    Attributes:
        code: its code in the catalogue.
        what: what the rule does: what it compares with what.
        why: why it is bad: what the user sees, and what it costs.
        evidence: what is seen of it at run time, and from which step on.
        example: code that makes the mistake.
        instead: the same code done right.
        remedy: how it is mended.
        safety: how safe that is: may it be applied unasked, may it change meaning, or is it advice.
        how_safe: the same in a sentence, with its reason.
        false_alarms: when the rule speaks although nothing is wrong, and how to silence it.
        source: a public report, a paper or a file; ``none found`` where there is none.
        look: finds it.
        sound: what was checked and found right, in a few words, where ``look`` found nothing and there was something
            to check; ``None`` where there was not.
        explains: codes of rules whose findings are consequences of this one, where the paths are among these, or there
            are none.
    """

    code: str
    what: str
    why: str
    evidence: str
    example: str
    instead: str
    remedy: str
    safety: Safety
    how_safe: str
    false_alarms: str
    source: str
    look: Callable[[Seen], Iterator[Found]]
    sound: Callable[[Seen], str | None]
    explains: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The mistake in one line, as the catalogue has it."""
        return CATALOGUE[self.code]
