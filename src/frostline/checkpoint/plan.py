"""What loading would do, tensor by tensor, as a value that prints itself, can be applied, and can be written down."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import nn

from frostline.checkpoint.folding import fold_modules
from frostline.checkpoint.opened import Checkpoint
from frostline.checkpoint.operations import Operation
from frostline.checkpoint.patterns import covering
from frostline.errors import CheckpointError, printable
from frostline.tables import html_table, text_table

if TYPE_CHECKING:
    from os import PathLike

    from torch import Tensor

    from frostline.checkpoint.load_report import LoadReport
    from frostline.checkpoint.probe import Probe

SCHEMA_VERSION = 1
# What each verdict says of an entry; the first group is loaded, the second is on purpose, the third stands in the way.
LOADED = ("same", "renamed", "cast", "adapted", "expanded")
ON_PURPOSE = ("kept-init", "dropped", "filled")
IN_THE_WAY = ("missing", "unexpected", "shape-mismatch", "ambiguous", "conflict(tied)", "held")
_SIGNS: Mapping[str, str] = {"missing": "-", "unexpected": "+"}
_MOST_LINES = 8


@dataclass(frozen=True)
class Row:
    """One entry of the model, of the checkpoint, or of both.

    Attributes:
        target: dotted path in the model; ``None`` for what only the checkpoint has.
        source: name in the checkpoint, without containers and wrappers; ``None`` for what only the model has.
        verdict: ``same``, ``renamed``, ``cast``, ``adapted:...``, ``expanded:...``; ``kept-init``, ``dropped``,
            ``filled:0``; ``missing``, ``unexpected``, ``shape-mismatch``, ``ambiguous``, ``conflict(tied)``, ``held``.
        confidence: ``exact`` (the same name), ``rule`` (asked for), ``prefix``, ``inferred``, ``tied``; empty where
            nothing was assigned.
        why: the evidence, or what is in the way.
        operations: what is done to the values, in order.
        shape_source: in the checkpoint.
        shape_target: in the model.
        dtype_source: in the checkpoint.
        dtype_target: in the model.
    """

    target: str | None
    source: str | None
    verdict: str
    confidence: str = ""
    why: str = ""
    operations: tuple[Operation, ...] = ()
    shape_source: tuple[int, ...] | None = None
    shape_target: tuple[int, ...] | None = None
    dtype_source: str | None = None
    dtype_target: str | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether values come from the checkpoint."""
        return self.verdict.startswith(LOADED)

    @property
    def is_in_the_way(self) -> bool:
        """Whether the plan cannot be applied because of it."""
        return self.verdict in IN_THE_WAY

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        return {**asdict(self), "operations": [each.to_json() for each in self.operations]}


@dataclass(frozen=True)
class LoadPlan:
    """What loading would do. Nothing has been done yet.

    Attributes:
        source: the checkpoint; its values are read when the plan is applied.
        model_name: the class of the model.
        rows: every entry of the model and of the checkpoint.
        notes: what is to be known beside the rows.
        asked: the arguments that it was planned with, as JSON-ready values.
        accept_suspect: patterns of entries in which NaN, infinities and negative variances are accepted.
    """

    source: Checkpoint
    model_name: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    asked: Mapping[str, Any]
    accept_suspect: tuple[str, ...]
    model: nn.Module = field(repr=False, compare=False)

    @cached_property
    def problems(self) -> list[Row]:
        """The rows that stand in the way."""
        return [row for row in self.rows if row.is_in_the_way]

    @cached_property
    def loaded(self) -> list[Row]:
        """The rows whose values come from the checkpoint."""
        return [row for row in self.rows if row.is_loaded]

    @property
    def complete(self) -> bool:
        """Whether it can be applied: everything is accounted for, and something is loaded."""
        return bool(self.loaded) and not self.problems

    @property
    def coverage(self) -> float:
        """The share of the model's tensors whose values come from the checkpoint; counters it lacks do not count."""
        wanted = [row for row in self.rows if row.target is not None and not row.verdict.startswith("filled")]
        return len(self.loaded) / len(wanted) if wanted else 0.0

    def check(self) -> None:
        """Do nothing if the plan can be applied.

        Raises:
            CheckpointError: entries are not accounted for; the message is a diff with the narrow fix.
        """
        if not self.complete:
            raise CheckpointError(self._refusal())

    def apply(self) -> LoadReport:
        """Write the values into the model: all of them or none, and checked by value.

        Parameters stay the same objects, so that optimizers keep working; modes, ``requires_grad`` and every entry
        that the plan does not load stay as they are. Whatever goes wrong, the model is left as it was, to the bit.

        Raises:
            CheckpointError: the plan is incomplete; a cast would lose values; or values are NaN, infinite or negative
                variances and were not accepted.
            CorruptCheckpoint: the file has changed since, or is damaged.
        """
        from frostline.checkpoint.apply import apply_plan

        return apply_plan(self)

    def probe(self, batches: Iterable[Any]) -> Probe:
        """Load into a copy, run a few real batches, and compare running statistics with theirs.

        See :func:`frostline.checkpoint.probe.probe_statistics`; the model itself is not touched.
        """
        import copy

        from frostline.checkpoint.apply import apply_plan
        from frostline.checkpoint.probe import probe_statistics

        trial = copy.deepcopy(self.model)
        apply_plan(self, trial)
        return probe_statistics(trial, batches)

    def write(self, path: str | PathLike[str]) -> None:
        """Write what the plan loads as a safetensors file under the model's names, with the plan in its header.

        See :func:`frostline.checkpoint.convert.write_plan`.
        """
        from frostline.checkpoint.convert import write_plan

        write_plan(self, path)

    def values(self, current: Mapping[str, Tensor]) -> Iterable[tuple[Row, Tensor]]:
        """The rows that are loaded with their new values, one after the other.

        Args:
            current: what the model has, for operations that keep a part of it.
        """
        names = {self.source.whole_name(name): name for name in self.source.tensors}
        for row in self.loaded:
            assert row.target is not None
            assert row.source is not None
            value = self.source.tensors[names[row.source]].read()
            for operation in row.operations:
                try:
                    value = operation.run(value, current.get(row.target))
                except CheckpointError as error:
                    raise CheckpointError(
                        f"{self.source.title} does not fit {self.model_name}; nothing was changed\n"
                        f"  {printable(row.source)} -> {row.target}: {error}\n"
                        f"  fix: a model of the checkpoint's type, or adapt={{{row.target!r}: 'narrow'}}"
                    ) from error
            yield row, value

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready values, from which :func:`frostline.checkpoint.convert.convert` works."""
        return {
            "schema_version": SCHEMA_VERSION,
            "source": {
                "name": self.source.title,
                "format": self.source.format,
                "container": list(self.source.container),
                "stripped": list(self.source.stripped),
            },
            "model": self.model_name,
            "asked": dict(self.asked),
            "coverage": self.coverage,
            "complete": self.complete,
            "notes": list(self.notes),
            "rows": [row.to_dict() for row in self.rows],
        }

    def __repr__(self) -> str:
        return self._headline()

    def __str__(self) -> str:
        lines = [self._headline(), *(f"  {choice}" for choice in self.source.choices())]
        for heading, rows in self._groups():
            lines += ["", heading]
            # A column that says nothing is left away.
            used = [index for index in range(len(_COLUMNS)) if any(row[index] for row in rows)]
            lines.append(text_table([_COLUMNS[i] for i in used], [[row[i] for i in used] for row in rows], indent=2))
        lines += [f"note: {note}" for note in self.notes]
        if not self.complete:
            lines += ["", *self._diff(), f"  fix: {self._fix()}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows: list[list[object]] = [[heading, *row] for heading, rows in self._groups() for row in rows]
        return html_table(["verdict", *_COLUMNS], rows, caption=self._headline())

    def _headline(self) -> str:
        wanted = sum(row.target is not None and not row.verdict.startswith("filled") for row in self.rows)
        state = "" if self.complete else ", incomplete"
        return f"{self.source.title} -> {self.model_name}: {len(self.loaded)} of {wanted} tensors{state}"

    def _groups(self) -> list[tuple[str, list[list[object]]]]:
        """The rows by verdict, like ones in one line: what it is called in the model, and in the checkpoint."""
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.verdict, row.confidence), []).append(row)
        result: list[tuple[str, list[list[object]]]] = []
        for (verdict, confidence), rows in groups.items():
            sources = {row.target: row.source for row in rows if row.target and row.source}
            lines: list[list[object]] = []
            for together in fold_modules([row.target for row in rows if row.target]):
                there = fold_modules([source for name in together.names if (source := sources.get(name))])
                lines.append([together.text, ", ".join(each.text for each in there)])
            for each in fold_modules([row.source for row in rows if row.source and not row.target]):
                lines.append(["", each.text])
            how = f" ({confidence})" if confidence and confidence != "exact" else ""
            result.append((f"{verdict}{how}: {len(rows)}", lines))
        return result

    def _refusal(self) -> str:
        return "\n".join(
            [
                f"{self.source.title} does not fit {self.model_name}; nothing was changed",
                *(f"  {choice}" for choice in self.source.choices()),
                *self._diff(),
                f"  fix: {self._fix()}",
            ]
        )

    def _diff(self) -> list[str]:
        """What is in the way: ``-`` the model lacks a value, ``+`` the checkpoint has one too many, ``!`` the rest."""
        lines: list[str] = []
        if not self.loaded and not any(row.verdict == "ambiguous" for row in self.problems):
            lines.append("  0 % of the model's tensors would come from the checkpoint: one of another kind of model?")
        for verdict in IN_THE_WAY:
            rows = [row for row in self.problems if row.verdict == verdict]
            lines += [f"  {text}" for text in _folded(rows, _SIGNS.get(verdict, "!"), _HEADINGS[verdict])]
        return lines

    def _fix(self) -> str:
        """The narrow arguments that would allow what is in the way, or else what to change."""
        said: list[str] = []
        problems = self.problems
        suggested = self._take()
        if suggested:
            return suggested
        rivals = list(dict.fromkeys(p for row in problems if row.confidence == "tied" for p in _prefixes_in(row.why)))
        if rivals:
            said.append(" or ".join(f"take={prefix.rstrip('.')!r}" for prefix in rivals))
        elif any(row.verdict == "ambiguous" for row in problems):
            said.append("rename= for what is ambiguous, or accept_ambiguous=True for the assignment shown")
        if any(row.verdict == "held" for row in problems):
            said.append("hold.thaw() first")
        if any(row.verdict == "conflict(tied)" for row in problems):
            said.append("untie the tensors in the model, or drop= one of the two")
        if any(row.why.startswith("not a tensor") for row in problems):
            said.append("keep= what is no tensor")
        missing = [row.target for row in problems if row.verdict in {"missing", "shape-mismatch"} and row.target]
        unexpected = [row.source for row in problems if row.verdict in {"unexpected", "shape-mismatch"} and row.source]
        if self.loaded:
            fine = [row.target for row in self.rows if row.target and row.target not in missing]
            wanted = [row.source for row in self.rows if row.source and row.source not in unexpected]
            arguments = [
                f"{name}={patterns if len(patterns) > 1 else patterns[0]!r}"
                for name, patterns in (("keep", covering(missing, fine)), ("drop", covering(unexpected, wanted)))
                if patterns
            ]
            if arguments:
                said.append(f"if that is meant: {', '.join(arguments)}")
        else:
            said.append("take= or rename= if it is the right one")
        return "; ".join(said) or "another checkpoint"

    def _take(self) -> str:
        """The prefix that explains all that is in the way, if one does."""
        prefixes = {prefix for row in self.rows if row.confidence == "prefix" for prefix in _prefixes_in(row.why)}
        only = [row for row in self.problems if row.verdict != "unexpected"]
        if len(prefixes) != 1 or only or not self.problems:
            return ""
        prefix = prefixes.pop().rstrip(".")
        outside = all(not (row.source or "").startswith(f"{prefix}.") for row in self.problems)
        return f"take={prefix!r}, which leaves the rest out" if outside else ""


_COLUMNS = ["model", "checkpoint"]
_HEADINGS: Mapping[str, str] = {
    "missing": "not in the checkpoint",
    "unexpected": "not in the model",
    "shape-mismatch": "do not fit",
    "ambiguous": "could be another",
    "conflict(tied)": "one tensor in the model, several values in the checkpoint",
    "held": "held frozen",
}


def _prefixes_in(why: str) -> list[str]:
    """The beginnings of names in the checkpoint that an assignment rests on, or could."""
    return why.split("'")[1::2] if "in front of names in the checkpoint" in why else []


def _folded(rows: Sequence[Row], sign: str, heading: str) -> list[str]:
    """At most a few lines for the rows of one verdict, like ones in one."""
    if not rows:
        return []
    named = {(row.target or row.source or ""): row for row in rows}
    groups = fold_modules(list(named))
    lines = [f"{len(rows)} {heading}:"]
    for group in groups[:_MOST_LINES]:
        row = named[group.names[0]]
        shape = row.shape_target if row.shape_target is not None else row.shape_source
        shown = "" if shape is None or len(group.names) > 1 or row.verdict == "shape-mismatch" else f" {tuple(shape)}"
        sources = [each for name in group.names if named[name].target and (each := named[name].source)]
        arrow = f" <- {', '.join(each.text for each in fold_modules(sources))}" if sources else ""
        lines.append(f"  {sign} {group.text}{shown}{arrow}" + (f": {printable(row.why)}" if row.why else ""))
    if len(groups) > _MOST_LINES:
        lines.append(f"  {sign} (+{len(groups) - _MOST_LINES} more; plan.problems)")
    return lines
