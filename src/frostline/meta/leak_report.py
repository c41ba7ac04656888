"""What leaked from one task to the next, as a value that prints itself; knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from frostline.errors import MetaError, name_some
from frostline.json_values import finite
from frostline.tables import html_table, text_table

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Leak:
    """One thing that a task left behind, or that another task changed.

    Attributes:
        where: the dotted path of an entry of the model, or the name of a result.
        kind: ``parameter``, ``buffer``, ``mode``, ``requires_grad``, ``config``, ``extra``, ``attribute`` (a tensor
            that a module keeps, which is neither parameter nor buffer) or ``result``.
        role: what the entry is for.
        by: the largest absolute difference; ``None`` where there is none to tell.
        when: what moved it.
        cause: why, as far as it is known.
        fix: the narrow one.
    """

    where: str
    kind: str
    role: str
    by: float | None
    when: str
    cause: str
    fix: str


@dataclass(frozen=True)
class LeakReport:
    """Whether anything leaks between tasks. ``bool(report)`` is whether something does.

    Attributes:
        subject: what was checked.
        leaks: what was found, state before results.
        compared: which results were compared, to the bit.
        entries: how many entries of the model were compared by digest.
        not_repeatable: results that differ although nothing came between, seeded alike and from the same state; they
            say nothing about leaks.
        skipped: what could not be checked, with the reason.
    """

    subject: str
    leaks: tuple[Leak, ...]
    compared: tuple[str, ...]
    entries: int
    not_repeatable: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.leaks)

    @property
    def proven(self) -> bool:
        """Whether nothing leaks and every result could be compared."""
        return not self.leaks and not self.not_repeatable and bool(self.compared)

    @property
    def state(self) -> tuple[Leak, ...]:
        """Entries of the model that moved."""
        return tuple(leak for leak in self.leaks if leak.kind != "result")

    @property
    def results(self) -> tuple[Leak, ...]:
        """Results that another task changed."""
        return tuple(leak for leak in self.leaks if leak.kind == "result")

    def raise_if_leaking(self) -> None:
        """Do nothing if nothing leaks.

        Raises:
            MetaError: something does; the first few are named.
        """
        if not self.leaks:
            return
        raise MetaError("\n".join([self._title(), *self._causes()]))

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values with a schema version."""
        return finite({"schema_version": SCHEMA_VERSION, "leaking": bool(self), **asdict(self)})

    def __str__(self) -> str:
        lines = [self._title()]
        if self.leaks:
            more = f"\n(+{len(self.leaks) - 40} more rows; report.to_json())" if len(self.leaks) > 40 else ""
            lines += [text_table(_COLUMNS, self._rows()[:40], width=120) + more, *self._causes()]
        if self.not_repeatable:
            lines.append(
                f"  not repeatable by itself: {name_some(self.not_repeatable)}, seeded alike and from the same state; "
                "random numbers of another generator, or state outside of the model"
            )
        return "\n".join([*lines, *(f"  not checked: {text}" for text in self.skipped)])

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows(), caption=self._title())

    def _title(self) -> str:
        if not self.leaks:
            equal = f"{len(self.compared)} results and {self.entries:,} entries equal to the bit"
            found = "nothing leaks" if self.proven else "no leak was found, and not everything could be compared,"
            return f"{self.subject}: {found} between tasks: {equal}"
        state, results = len(self.state), len(self.results)
        return (
            f"{self.subject} leaks between tasks: {state} of {self.entries:,} entries of the model moved, "
            f"{results} of {len(self.compared)} results depend on another task"
        )

    def _rows(self) -> list[Sequence[object]]:
        return [[leak.where, leak.role, leak.by, leak.when] for leak in self.leaks]

    def _causes(self) -> list[str]:
        """Each cause once, with the entries that it explains."""
        by_cause: dict[tuple[str, str], list[str]] = {}
        for leak in self.leaks:
            by_cause.setdefault((leak.cause, leak.fix), []).append(leak.where)
        return [
            f"  {cause}: {name_some(list(dict.fromkeys(where)), most=4)}\n  fix: {fix}"
            for (cause, fix), where in by_cause.items()
        ]


_COLUMNS = ["what moved", "role", "max |Δ|", "by"]
