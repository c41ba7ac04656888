"""What came of a freeze over a run: every held entry before and after, and what began to train when."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from frostline.errors import name_some
from frostline.integrations.json_file import write_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Unfrozen:
    """What began to train.

    Attributes:
        epoch: after how many epochs.
        step: after how many steps of the optimizer.
        parts: as the schedule names them.
    """

    epoch: int
    step: int
    parts: tuple[str, ...]


@dataclass(frozen=True)
class FreezeReport:
    """What came of a freeze; prints itself, also in a notebook.

    Attributes:
        held: path of each state entry that was held to the end, to ``{before, after, equal}``: digests for tensors,
            values for flags.
        moved: those that are not what they were; empty if the freeze held.
        unfrozen: what began to train, in order.
        anew: held parameters that a strategy had re-created, and that were held again from then on.
        verified: how many times it was verified before the end.
    """

    held: Mapping[str, Mapping[str, Any]]
    moved: tuple[str, ...] = ()
    unfrozen: tuple[Unfrozen, ...] = ()
    anew: tuple[str, ...] = ()
    verified: int = 0

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            "held": {path: dict(row) for path, row in self.held.items()},
            "moved": list(self.moved),
            "unfrozen": [{"epoch": each.epoch, "step": each.step, "parts": list(each.parts)} for each in self.unfrozen],
            "anew": list(self.anew),
            "verified": self.verified,
        }

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON, whole or not at all; missing folders are made.

        Raises:
            StorageFull: the disk is full.
            CannotWrite: the place cannot be written to.
        """
        return write_json(path, self.to_json())

    def __str__(self) -> str:
        still = len(self.held) - len(set(self.moved) & set(self.held))
        lines = [f"{still:,} of {len(self.held):,} held state entries are equal to the bit"]
        if self.moved:
            lines.append(f"moved: {name_some(self.moved, rest='report.moved')}")
        lines += [
            f"unfrozen after epoch {each.epoch}, step {each.step}: {name_some(each.parts)}" for each in self.unfrozen
        ]
        if self.anew:
            lines.append(f"re-created by the strategy, held again: {name_some(self.anew, rest='report.anew')}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"
