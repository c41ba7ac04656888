"""Compares a converted checkpoint with the original by value: what its plan says is done once more."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from frostline.checkpoint.container import WRAPPER_TOKENS
from frostline.checkpoint.convert import PLAN, converted_tensor, filled, left_unsaid
from frostline.checkpoint.opened import Checkpoint, open_checkpoint
from frostline.checkpoint.paper import plan_told
from frostline.checkpoint.plan import SCHEMA_VERSION, Row
from frostline.state.digest import digest
from frostline.tables import html_text, text_table


@dataclass(frozen=True)
class VerifiedRow:
    """Whether a tensor of one file is what it should be by another.

    Attributes:
        target: its name in the converted file.
        source: its name in the original.
        verdict: ``equal``, ``differs``, ``missing`` (in the converted file), ``unexplained`` (nothing says where it
            comes from) or ``left out`` (of the converted file, on purpose).
    """

    target: str | None
    source: str | None
    verdict: str


@dataclass(frozen=True)
class Verification:
    """What a comparison by value found.

    Attributes:
        rows: each tensor.
        by_plan: whether the converted file says how it was made; otherwise names have to be the same.
    """

    rows: tuple[VerifiedRow, ...]
    by_plan: bool

    @property
    def holds(self) -> bool:
        """Whether every tensor is what it should be, and there are some."""
        verdicts = {row.verdict for row in self.rows}
        return "equal" in verdicts and verdicts <= {"equal", "left out"}

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values."""
        rows = [row.__dict__ for row in self.rows]
        return {"schema_version": SCHEMA_VERSION, "holds": self.holds, "by_plan": self.by_plan, "rows": rows}

    def __str__(self) -> str:
        counts = {
            word: sum(row.verdict == word for row in self.rows) for word in dict.fromkeys(r.verdict for r in self.rows)
        }
        how = "by the plan in its header" if self.by_plan else "name by name; it carries no plan"
        if counts.get("differs", 0) > 1:
            counts = {"differ" if word == "differs" else word: count for word, count in counts.items()}
        said = ", ".join(f"{count} {word}" for word, count in counts.items()) or "no tensors"
        bad = [[row.target, row.source, row.verdict] for row in self.rows if row.verdict not in {"equal", "left out"}]
        table = "\n" + text_table(["converted", "original", ""], bad[:20]) if bad else ""
        more = f"\n(+{len(bad) - 20} more; --json)" if len(bad) > 20 else ""
        return f"{'holds' if self.holds else 'does not hold'}: {said}, {how}{table}{more}"

    def _repr_html_(self) -> str:
        return html_text(self)


def verify(
    original: str | os.PathLike[str], converted: str | os.PathLike[str], *, allow_pickle: bool = False
) -> Verification:
    """Compare a converted file with the original, by value: what the plan in its header says is done once more.

    Args:
        original: the checkpoint that was converted.
        converted: the file that was made from it; without a plan in its header, names have to be the same.
        allow_pickle: run whatever code the files bring. Only for files that you trust as you trust a program.

    Raises:
        CheckpointError: one of them cannot be used.
        UnsafeCheckpoint: one wants to run code, and ``allow_pickle`` does not let it.
    """
    after = open_checkpoint(converted, allow_pickle=allow_pickle)
    if PLAN not in after.metadata:
        before = open_checkpoint(original, allow_pickle=allow_pickle)
        rows = [
            VerifiedRow(name, name, _equal(before.tensors[name].digest(), entry.digest()))
            if name in before.tensors
            else VerifiedRow(name, None, "unexplained")
            for name, entry in after.tensors.items()
        ]
        rows += [VerifiedRow(None, name, "missing") for name in before.tensors if name not in after.tensors]
        return Verification(tuple(rows), by_plan=False)
    told = plan_told(after.metadata[PLAN], str(converted))
    after = open_checkpoint(converted, keep=WRAPPER_TOKENS)  # its names are those of the model, to the letter
    before = open_checkpoint(
        original, take=told.take, keep=WRAPPER_TOKENS - set(told.stripped), allow_pickle=allow_pickle
    )
    rows = [_verified(row, before, after) for row in told.rows]
    known = {row.target for row in rows}
    rows += [VerifiedRow(name, None, "unexplained") for name in after.tensors if name not in known]
    rows += [VerifiedRow(None, name, "missing") for name in left_unsaid(told.rows, before)]
    return Verification(tuple(row for row in rows if row.verdict), by_plan=True)


def _verified(row: Row, before: Checkpoint, after: Checkpoint) -> VerifiedRow:
    if row.target is None:
        return VerifiedRow(None, row.source, "left out")
    if not (row.is_loaded or row.verdict == "filled:0"):
        return VerifiedRow(row.target, row.source, "" if row.target not in after.tensors else "unexplained")
    if row.target not in after.tensors:
        return VerifiedRow(row.target, row.source, "missing")
    found = after.tensors[row.target].read()
    if row.verdict == "filled:0":
        return VerifiedRow(row.target, None, _equal(digest(filled(row)), digest(found)))
    expected = converted_tensor(row, before, found).read()
    return VerifiedRow(row.target, row.source, _equal(digest(expected), digest(found)))


def _equal(one: str, other: str) -> str:
    return "equal" if one == other else "differs"
