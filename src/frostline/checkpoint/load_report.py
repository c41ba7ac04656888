"""What a load did: coverage, provenance of each tensor, and the one line that says it worked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from frostline.checkpoint.plan import LoadPlan, Row
from frostline.checkpoint.units import units_of
from frostline.state.inventory import inventory
from frostline.state.names import name_folded
from frostline.tables import html_table, text_table

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LoadedRow:
    """Where the value of one entry comes from.

    Attributes:
        target: dotted path in the model; ``None`` for what only the checkpoint has.
        source: its name in the checkpoint, without containers and wrappers.
        verdict: as in :class:`~frostline.checkpoint.plan.Row`.
        confidence: likewise.
        why: likewise.
        file: the file it lies in; empty for tensors that were given themselves.
        key: its name there.
        operations: what was done to it.
        digest: of the value in the model, equal to that of the checkpoint's after the operations.
        elements: how many elements it has in the model.
    """

    target: str | None
    source: str | None
    verdict: str
    confidence: str
    why: str
    file: str
    key: str
    operations: tuple[str, ...]
    digest: str
    elements: int


@dataclass(frozen=True)
class SubTree:
    """How much of a part of the model came from the checkpoint.

    Attributes:
        path: of the part; empty for tensors at the root.
        tensors: how many came, and how many it has.
        elements: likewise.
    """

    path: str
    tensors: tuple[int, int]
    elements: tuple[int, int]


@dataclass(frozen=True)
class LoadReport:
    """What was loaded. The values in the model have been compared with the checkpoint's.

    Attributes:
        path: the checkpoint; ``None`` for tensors that were given themselves.
        coverage: the share of the model's tensors whose values came from the checkpoint, from 0 to 1. Counters that
            the checkpoint lacks and that were set to 0 do not count.
        elements: how many elements those are.
        rows: every entry of the model and of the checkpoint.
        subtrees: coverage by part of the model.
        norms: layers with running statistics: how many got theirs, and how many there are.
        notes: what is to be known beside it.
        summary: all of it in one line.
    """

    path: Path | None
    coverage: float
    elements: int
    rows: tuple[LoadedRow, ...]
    subtrees: tuple[SubTree, ...]
    norms: tuple[int, int]
    notes: tuple[str, ...]
    summary: str

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready values with a schema version."""
        path = None if self.path is None else str(self.path)
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "path": path}

    def __str__(self) -> str:
        lines = [self.summary, "", text_table(_COLUMNS, self._table(), width=100)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._table(), caption=self.summary)

    def _table(self) -> list[list[object]]:
        return [
            [tree.path or "(root)", _of(tree.tensors), _of(tree.elements), f"{_share(tree.elements):.1%}"]
            for tree in self.subtrees
        ]


_HOW = {"rule": "by rule", "prefix": "by prefix", "inferred": "by structure", "tied": "as accepted"}
_COLUMNS = ["part", "tensors", "elements", ""]


def report_on(plan: LoadPlan, digests: Mapping[str, str], suspects: Sequence[str] = ()) -> LoadReport:
    """Say what was done.

    Args:
        plan: what was planned, and then done.
        digests: by path, of what lies in the model now.
        suspects: values that cannot be meant and were accepted.
    """
    loaded = {row.target for row in plan.loaded}
    elements = {row.target: math.prod(row.shape_target or ()) for row in plan.rows if row.target and _counts(row)}
    norms = [
        {"mean", "var"} <= {role for role, name in unit.leaves.items() if name in loaded}
        for unit in units_of({row.target: row.shape_target or () for row in plan.rows if row.target}).values()
        if unit.has_statistics
    ]
    report = LoadReport(
        path=plan.source.path,
        coverage=plan.coverage,
        elements=sum(count for target, count in elements.items() if target in loaded),
        rows=tuple(_row(plan, row, digests) for row in plan.rows),
        subtrees=_subtrees(elements, loaded),
        norms=(sum(norms), len(norms)),
        notes=(*plan.notes, *(f"accepted: {suspect}" for suspect in suspects)),
        summary="",
    )
    said = [f"suspect values accepted x{len(suspects)}"] if suspects else []
    return replace(report, summary="; ".join([_summary(plan, report, elements), *said]))


def _counts(row: Row) -> bool:
    return not row.verdict.startswith("filled") and row.shape_target is not None


def _row(plan: LoadPlan, row: Row, digests: Mapping[str, str]) -> LoadedRow:
    name = (row.source or "")[len(plan.source.subtree) :].lstrip(".") if plan.source.subtree else row.source or ""
    key = plan.source.originals.get(name, row.source or "")
    return LoadedRow(
        target=row.target,
        source=row.source,
        verdict=row.verdict,
        confidence=row.confidence,
        why=row.why,
        file=str(plan.source.path) if plan.source.path is not None and row.is_loaded else "",
        key=".".join((*plan.source.container, key)) if row.is_loaded else key,
        operations=tuple(str(each) for each in row.operations),
        digest=digests.get(row.target or "", ""),
        elements=math.prod(row.shape_target or row.shape_source or ()),
    )


def _subtrees(elements: Mapping[str, int], loaded: set[str | None]) -> tuple[SubTree, ...]:
    parts: dict[str, list[str]] = {}
    for target in elements:
        parts.setdefault(target.split(".")[0] if "." in target else "", []).append(target)
    return tuple(
        SubTree(
            path,
            (sum(name in loaded for name in members), len(members)),
            (sum(elements[name] for name in members if name in loaded), sum(elements[name] for name in members)),
        )
        for path, members in parts.items()
    )


def _summary(plan: LoadPlan, report: LoadReport, elements: Mapping[str, int]) -> str:
    total = sum(elements.values())
    tensors = f"{len(plan.loaded)}/{len(elements)} tensors"
    whole = f"{report.elements:,}/{total:,} elements ({_percent(report.elements, total)})"
    said = f"{plan.source.title} -> {plan.model_name}: {tensors}, {whole}"
    if report.norms[1]:
        said += f", {report.norms[0]}/{report.norms[1]} {_norm_type(plan)} with statistics"
    parts = [said, *plan.source.choices(), *_changes(plan)]
    return "; ".join(parts)


def _changes(plan: LoadPlan) -> list[str]:
    said: list[str] = []
    for confidence, words in _HOW.items():
        count = sum(row.confidence == confidence for row in plan.loaded)
        if count:
            said.append(f"{count} renamed {words}")
    operations: dict[str, int] = {}
    for row in plan.loaded:
        for operation in row.operations:
            name = f"cast to {operation.arguments['to']}" if operation.name == "cast" else operation.name
            operations[name] = operations.get(name, 0) + 1
    said += [f"{name} x{count}" for name, count in operations.items()]
    filled = [row for row in plan.rows if row.verdict == "filled:0"]
    if filled:
        said.append(f"num_batches_tracked absent x{len(filled)} -> set to 0")
    for verdict, words in (("kept-init", "kept"), ("dropped", "dropped")):
        names = [
            row.target or row.source or ""
            for row in plan.rows
            # What was not taken is said by the choices.
            if row.verdict == verdict and row.source not in plan.source.outside
        ]
        if names:
            tops = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
            said.append(f"{words} {name_folded(tops, most=4)}")
    return said


def _norm_type(plan: LoadPlan) -> str:
    types = {
        entry.module_type.removesuffix("1d").removesuffix("2d").removesuffix("3d")
        for entry in inventory(plan.model).values()
        if entry.role == "norm.mean"
    }
    return types.pop() if len(types) == 1 else "norm layers"


def _of(counts: tuple[int, int]) -> str:
    return f"{counts[0]:,}/{counts[1]:,}"


def _share(counts: tuple[int, int]) -> float:
    return counts[0] / counts[1] if counts[1] else 1.0


def _percent(part: int, whole: int) -> str:
    """Rounded down, so that only all of it is 100 %."""
    return f"{100 * part // whole if whole else 100} %"
