"""Which rules are asked for: codes and their first characters, resolved against the catalogue."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING

from frostline.errors import LintSettingsError, name_some, printable
from frostline.findings import CATALOGUE
from frostline.lint.globs import Globs

if TYPE_CHECKING:
    from frostline.lint.settings import Settings

EVERYTHING = "ALL"


@dataclass(frozen=True)
class RuleSelection:
    """The rules that run.

    Attributes:
        codes: their codes.
        per_file: globs and the codes that are left out in files that they fit.
    """

    codes: frozenset[str]
    per_file: tuple[tuple[Globs, frozenset[str]], ...] = field(default=())

    @classmethod
    def of(
        cls,
        linted: Collection[str],
        *,
        select: Iterable[str] = (EVERYTHING,),
        ignore: Iterable[str] = (),
        extend_select: Iterable[str] = (),
        origins: Mapping[str, str] | None = None,
    ) -> RuleSelection:
        """Resolve codes and their first characters.

        For each rule the longest entry that its code begins with decides; of two of the same length, in ``ignore`` and
        in one of the others, the one in ``ignore``. ``ALL`` is shorter than any. Case does not count.

        Args:
            linted: the codes that the linter has a rule for.
            select: what runs: ``F``, ``F1``, ``F107`` or ``ALL``.
            ignore: what does not run.
            extend_select: more that runs.
            origins: argument to the place that it comes from, for errors: ``option --select``.

        Raises:
            LintSettingsError: no rule of the linter begins so.

        Example:
            >>> rules = {"F101", "F107", "M203"}
            >>> sorted(RuleSelection.of(rules, select=["F"], ignore=["F10"], extend_select=["f107"]).codes)
            ['F107']
        """
        places = origins or {}
        wanted: dict[str, int] = {}
        unwanted: dict[str, int] = {}
        for name, entries, lengths in (
            ("select", select, wanted),
            ("extend_select", extend_select, wanted),
            ("ignore", ignore, unwanted),
        ):
            for entry in entries:
                length, codes = _resolved(entry, linted, places.get(name, name.replace("_", "-")))
                for code in codes:
                    lengths[code] = max(length, lengths.get(code, 0))
        return cls(frozenset(code for code, length in wanted.items() if length > unwanted.get(code, -1)))

    @classmethod
    def from_settings(cls, settings: Settings, linted: Collection[str]) -> RuleSelection:
        """The rules that settings ask for, with what they leave out in single files.

        Args:
            settings: where ``select``, ``ignore``, ``extend_select`` and ``per_file_ignores`` stand.
            linted: the codes that the linter has a rule for.

        Raises:
            LintSettingsError: no rule of the linter begins so; the message says where it was asked for.
        """
        chosen = cls.of(
            linted,
            select=settings.select,
            ignore=settings.ignore,
            extend_select=settings.extend_select,
            origins={name: settings.origin(name) for name in ("select", "ignore", "extend_select")},
        )
        place = settings.origin("per_file_ignores")
        per_file = tuple(
            (
                Globs([glob], settings.root),
                frozenset(code for entry in entries for code in _resolved(entry, linted, place)[1]),
            )
            for glob, entries in settings.per_file_ignores.items()
        )
        return cls(chosen.codes, per_file)

    def codes_for(self, path: str) -> frozenset[str]:
        """The codes of the rules that run on one file.

        Args:
            path: its absolute path.
        """
        left_out = [codes for globs, codes in self.per_file if globs.match(path)]
        return self.codes.difference(*left_out) if left_out else self.codes


def _resolved(entry: str, linted: Collection[str], place: str) -> tuple[int, list[str]]:
    """How long an entry is, and the codes of the linter that begin with it."""
    wanted = entry.strip().upper()
    if wanted == EVERYTHING:
        return 0, list(linted)
    found = [code for code in linted if code.startswith(wanted)] if wanted else []
    if not found:
        raise LintSettingsError(_unknown(entry, wanted, linted, place))
    return len(wanted), found


def _unknown(entry: str, wanted: str, linted: Collection[str], place: str) -> str:
    """What to say of an entry that no rule of the linter begins with."""
    head = f"no rule of the linter is called {printable(entry)!r}, asked for by {place}"
    if wanted in CATALOGUE:
        return f"{head}\n  {wanted} is seen at run time only: frostline doctor\n  {wanted}  {CATALOGUE[wanted]}"
    later = [code for code in CATALOGUE if code.startswith(wanted)] if wanted else []
    if later:
        verb = "is" if len(later) == 1 else "are"
        return f"{head}\n  {name_some(later)} {verb} seen at run time only: frostline doctor"
    near = get_close_matches(wanted, sorted(linted), n=3, cutoff=0.5)
    if near:
        return "\n".join([head, "  near:", *(f"    {code}  {CATALOGUE[code]}" for code in near)])
    letters = sorted({code[0] for code in linted})
    return f"{head}\n  codes begin with {', '.join(letters)}; {EVERYTHING} stands for every rule; see frostline rule"
