"""What is in a checkpoint, without reading a value: format, containers, wrappers, sizes by sub-tree, norm layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from frostline.checkpoint.convert import PLAN
from frostline.checkpoint.delta_info import KEY as DELTA
from frostline.checkpoint.delta_info import read_delta_info
from frostline.checkpoint.opened import Checkpoint, Source, open_checkpoint
from frostline.checkpoint.paper import plan_told
from frostline.checkpoint.stored import dtype_name
from frostline.checkpoint.units import units_of
from frostline.errors import CheckpointError, printable
from frostline.tables import html_table, text_table

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Part:
    """A part of a checkpoint.

    Attributes:
        path: the beginning that its names have in common; empty for names without a dot.
        tensors: how many.
        elements: how many numbers those are.
        bytes: how many bytes they take.
        dtypes: their types, the most frequent first.
        norms: how many of its modules have running statistics.
    """

    path: str
    tensors: int
    elements: int
    bytes: int
    dtypes: tuple[str, ...]
    norms: int


@dataclass(frozen=True)
class Inspection:
    """What is in a checkpoint.

    Attributes:
        title: what it is called.
        format: of the file.
        files: how many files it has; an index is one of them.
        shards: over how many its tensors are spread; 0 where it is a single file.
        choices: what was unwrapped, stripped and taken, in words.
        beside: names in the same dictionary whose values are no tensors.
        parts: by the first token of the names.
        tensors: how many in all.
        elements: likewise.
        bytes: likewise; tensors under several names once.
        tied: how many names stand for a tensor that has another name too.
        norms: modules with running statistics.
        counters: how many of those have a counter of batches.
        notes: what a header says of how the file was made.
    """

    title: str
    format: str
    files: int
    shards: int
    choices: tuple[str, ...]
    beside: tuple[str, ...]
    parts: tuple[Part, ...]
    tensors: int
    elements: int
    bytes: int
    tied: int
    norms: int
    counters: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values with a schema version."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    def __str__(self) -> str:
        shards = f" in {self.shards} shard{'s' * (self.shards > 1)}" if self.shards else ""
        lines = [f"{self.title}: {self.format}{shards}, {self._totals()}", *(f"  {each}" for each in self.choices)]
        if self.norms:
            lines.append(
                f"  {self.norms} norm layers with running statistics, {self.counters} with num_batches_tracked"
            )
        if self.tied:
            lines.append(f"  {self.tied} names stand for a tensor that has another name too")
        if self.beside:
            shown = ", ".join(map(printable, self.beside[:8]))
            lines.append(f"  beside them, no tensors: {shown}{' ...' if len(self.beside) > 8 else ''}")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join([*lines, "", text_table(_COLUMNS, self._rows(), width=100)])

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows(), caption=f"{self.title}: {self.format}, {self._totals()}")

    def _totals(self) -> str:
        return f"{self.tensors:,} tensors, {self.elements:,} elements, {size_text(self.bytes)}"

    def _rows(self) -> list[list[object]]:
        return [
            [p.path or "(root)", p.tensors, p.elements, size_text(p.bytes), ", ".join(p.dtypes), p.norms or None]
            for p in self.parts
        ]


_COLUMNS = ["part", "tensors", "elements", "size", "types", "norms"]


def inspect(checkpoint: Checkpoint | Source) -> Inspection:
    """Say what is in a checkpoint; no value is read.

    Args:
        checkpoint: an opened one, or what :func:`open_checkpoint` opens.

    Raises:
        CheckpointError: it cannot be used.

    Example:
        >>> import torch
        >>> found = inspect({"model": {"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}})
        >>> found.tensors, found.elements, found.choices
        (2, 8, ("container 'model'",))
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint)
    units = units_of(checkpoint.shapes)
    with_statistics = [unit for unit in units.values() if unit.has_statistics]
    parts: dict[str, list[str]] = {}
    for name in checkpoint.tensors:
        parts.setdefault(name.split(".", 1)[0] if "." in name else "", []).append(name)
    norms = Counter(unit.path.split(".", 1)[0] for unit in with_statistics)
    places = {entry.place: entry.nbytes for entry in checkpoint.tensors.values()}
    return Inspection(
        title=checkpoint.title,
        format=checkpoint.format,
        files=len(checkpoint.files),
        shards=checkpoint.shards,
        choices=tuple(checkpoint.choices()),
        beside=checkpoint.beside,
        parts=tuple(_part(path, members, checkpoint, norms[path]) for path, members in parts.items()),
        tensors=len(checkpoint.tensors),
        elements=sum(entry.numel for entry in checkpoint.tensors.values()),
        bytes=sum(places.values()),
        tied=len(checkpoint.tensors) - len(places),
        norms=len(with_statistics),
        counters=sum("count" in unit.leaves for unit in with_statistics),
        notes=tuple(_notes(checkpoint)),
    )


def listing(found: Sequence[Inspection]) -> str:
    """Several checkpoints in one table: a trunk and the heads on it, for example."""
    rows = [[each.title, each.format, each.tensors, size_text(each.bytes), "; ".join(each.notes)] for each in found]
    total = ["in all", "", sum(each.tensors for each in found), size_text(sum(each.bytes for each in found)), ""]
    return text_table(["checkpoint", "format", "tensors", "size", ""], [*rows, total])


def size_text(count: int) -> str:
    """A number of bytes for people.

    Example:
        >>> size_text(999), size_text(44_700_000)
        ('999 B', '44.7 MB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":  # what three digits round to 1000 is one of the next unit
            return f"{size:.3g} {unit}" if size < 999.5 else f"{size:,.0f} {unit}"
        size /= 1000
    raise AssertionError("the loop returns")


def _part(path: str, members: list[str], checkpoint: Checkpoint, norms: int) -> Part:
    entries = [checkpoint.tensors[name] for name in members]
    types = Counter(dtype_name(entry.dtype) for entry in entries)
    return Part(
        path=path,
        tensors=len(entries),
        elements=sum(entry.numel for entry in entries),
        bytes=sum(entry.nbytes for entry in entries),
        dtypes=tuple(name for name, _ in types.most_common()),
        norms=norms,
    )


def _notes(checkpoint: Checkpoint) -> list[str]:
    """What Frostline itself wrote into the header."""
    if DELTA in checkpoint.metadata:
        try:
            return [f"a delta: {read_delta_info(checkpoint.metadata)}"]
        except CheckpointError as error:  # anyone can write a header
            return [str(error).splitlines()[0]]
    if PLAN not in checkpoint.metadata:
        return []
    try:
        told = plan_told(checkpoint.metadata[PLAN], checkpoint.title)
    except CheckpointError as error:  # anyone can write a header
        return [str(error).splitlines()[0]]
    return [printable(f"made from {told.name} for {told.model} by a plan of {len(told.rows)} rows")]
