"""What a model's state was at one moment; comparing it with another.

A snapshot keeps a digest of every tensor and the value of every flag; with ``values`` it also keeps copies, which
`restore` writes back and from which the size of a change is computed. Only `Snapshot.restore` writes to a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from frostline.errors import SnapshotError, name_some
from frostline.state import names
from frostline.state.changes import Change, StateDiff, check_version
from frostline.state.digest import ALGORITHM, digest_all, digest_value
from frostline.state.expected import expect_model
from frostline.state.inventory import SCHEMA_VERSION, TENSOR_KINDS, Entry, Inventory, entries_at, inventory
from frostline.state.selection import Selection, Selector, select
from frostline.state.shards import Part, cut, is_distributed, own_part, part_of, reshard
from frostline.tables import html_text

Values: TypeAlias = "bool | Literal['buffers']"


@dataclass(frozen=True)
class Record:
    """What a snapshot keeps of one state entry.

    Attributes:
        path: the dotted path.
        kind: as in :class:`~frostline.state.inventory.Entry`.
        role: likewise.
        module: likewise.
        module_type: likewise.
        mark: the digest of a tensor or of an extra state, the value itself of anything else.
        dtype: of a tensor.
        shape: of a tensor; of the whole one where this process holds a part.
        value: a copy of the tensor on the host, where the snapshot keeps values; of the part that is held.
        part: which part of a tensor ``mark`` and ``value`` are of: offsets and sizes; nothing where they are of all.
    """

    path: str
    kind: str
    role: str
    module: str
    module_type: str
    mark: str | bool | int | float | None
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    value: Tensor | None = field(default=None, repr=False, compare=False)
    part: Part | None = None


class Snapshot(dict[str, Record]):
    """Path to :class:`Record`; made by :func:`snapshot`.

    Attributes:
        partial: whether it covers part of a model only; comparing it then looks at no more than that part.
    """

    partial: bool = False

    def diff(self, other: nn.Module | Snapshot) -> StateDiff:
        """What has moved since.

        Neither side is changed. A partial snapshot is compared with the same paths of the other side, whichever side
        it is; a whole one also reports entries that were added.

        Args:
            other: a model, or another snapshot.

        Returns:
            The :class:`StateDiff`; rows have figures where this snapshot keeps values and shapes agree.

        Example:
            >>> layer = nn.BatchNorm1d(2)
            >>> before = snapshot(layer)
            >>> _ = layer(torch.ones(4, 2))
            >>> before.diff(layer).paths
            ['running_mean', 'running_var', 'num_batches_tracked']
        """
        if isinstance(other, Snapshot):
            known = self
            if other.partial and not self.partial:
                known = Snapshot({path: record for path, record in self.items() if path in other})
            return _compare(known, other, {path: r.value for path, r in other.items() if r.value is not None})
        entries = entries_at(other, self) if self.partial else inventory(other)
        live = _looked_at(entries, self)
        return _compare(
            self, _record(entries, values=False, live=live), {path: part for path, (part, _) in live.items()}
        )

    def restore(self, model: nn.Module) -> StateDiff:
        """Write the kept values, modes and flags back into a model; all or nothing.

        Tensors are written in place, so that optimizers keep their parameters, and checked by value afterwards.
        Gradients, optimizers, the configuration of layers, extra states and entries that were added are left alone.

        Args:
            model: the model the snapshot was taken of, or one of the same structure.

        Returns:
            What had moved: all that is restored, and what of the configuration, extra states and added entries is not.

        Raises:
            SnapshotError: the snapshot keeps no values, the model lacks an entry or has it in another dtype or shape,
                or ties tensors that were kept with different values.
        """
        without = [r.path for r in self.values() if r.kind in TENSOR_KINDS and r.value is None]
        if without:
            raise SnapshotError(
                f"restore: this snapshot keeps digests only, so {name_some(without)} cannot be written back.\n"
                "  fix: take it with snapshot(model, values=True)"
            )
        reshard(model)
        entries = inventory(model)
        unfit = [r.path for r in self.values() if not _fits(r, entries.get(r.path))]
        if unfit:
            raise SnapshotError(
                f"restore: the model has no entry of the same kind, dtype and shape for {name_some(unfit)}.\n"
                "  fix: restore into a model of the same structure; snapshot.diff(model) says how this one differs"
            )
        moved = self.diff(model)
        records = [self[path] for path in moved.paths if path in self]
        live = {path: part for path, (part, _) in _looked_at(entries, self).items()}
        self._write({r.path: live[r.path] for r in records if r.value is not None}, live)
        modules = dict(names.unwrap(model).named_modules(remove_duplicate=False))
        for record in records:
            if record.kind == "mode":
                # Written directly: `train()` would reach the children and could be a guard.
                modules[record.module].training = bool(record.mark)
            elif record.kind == "requires_grad":
                entries[record.path.removesuffix(".requires_grad")].value.requires_grad_(bool(record.mark))
        return moved

    @torch.no_grad()
    def _write(self, targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Write the targets and check all tensors by value, or leave the targets as they are."""
        undo: list[tuple[Tensor, Tensor]] = []
        try:
            for path, target in targets.items():
                undo.append((target, target.detach().to("cpu", copy=True)))
                value = self[path].value
                assert value is not None
                _copy(target, value)
            # Those that had not moved too: they may share memory with one that was written.
            found = digest_all({path: tensors[path] for path, r in self.items() if r.kind in TENSOR_KINDS})
            wrong = [path for path, mark in found.items() if mark != self[path].mark]
            if wrong:
                raise SnapshotError(
                    f"restore: {name_some(wrong)} cannot take the kept values: in this model they share memory with "
                    "tensors whose kept values differ.\n  fix: restore into a model with the same tied tensors"
                )
        except BaseException:
            for target, before in reversed(undo):
                _copy(target, before)
            raise

    def to_json(self) -> dict[str, Any]:
        """Digests and flags as JSON-ready values with a schema version; kept values are left out."""
        return {
            "schema_version": SCHEMA_VERSION,
            "algorithm": ALGORITHM,
            "partial": self.partial,
            "entries": [
                {k: v for k, v in record.__dict__.items() if k != "value" and not (k == "part" and v is None)}
                | {"shape": None if record.shape is None else list(record.shape)}
                for record in self.values()
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Snapshot:
        """The inverse of :meth:`to_json`; the result keeps no values.

        Raises:
            SnapshotError: the data is of another schema version or hashed by another algorithm.

        Example:
            >>> snap = snapshot(nn.Linear(2, 2))
            >>> Snapshot.from_json(snap.to_json()).diff(snap).still == len(snap)
            True
        """
        check_version(data)
        if data["algorithm"] != ALGORITHM:
            raise SnapshotError(f"snapshot: its digests are {data['algorithm']}, this version computes {ALGORITHM}")
        records = [_read_record(row) for row in data["entries"]]
        result = cls({record.path: record for record in records})
        result.partial = data["partial"]
        return result

    def __str__(self) -> str:
        kept = sum(record.value is not None for record in self.values())
        tensors = sum(record.kind in TENSOR_KINDS for record in self.values())
        return f"snapshot of {len(self):,} entries, {tensors:,} tensors, {kept:,} with values"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_text(self)


def snapshot(model: nn.Module, *selectors: Selector, values: Values = False) -> Snapshot:
    """Take down the state of a model, or of a part of it.

    The model is only read: no mode, no flag, no gradient and no random number is touched.

    Args:
        model: any module on any device.
        *selectors: the part, as in :func:`~frostline.state.selection.select`; none means the whole model.
        values: ``False`` keeps digests; ``"buffers"`` also copies of buffers, so that a diff can say by how much they
            moved; ``True`` copies of everything, from which :meth:`Snapshot.restore` works.

    Returns:
        The :class:`Snapshot`. It holds no reference to the model.

    Raises:
        NothingSelected: a selector matches nothing.
        CannotDigest: a tensor has no bytes (meta device, lazy module).

    Example:
        >>> model = nn.BatchNorm1d(2)
        >>> before = snapshot(model, values=True)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(1)
        >>> before.diff(model).moved[0].max_abs
        1.0
        >>> _ = before.restore(model)
        >>> bool(before.diff(model))
        False
    """
    expect_model(model, "snapshot", "snapshot(model, *names)")
    entries = inventory(model)
    if selectors:
        entries = entries_of(select(model, *selectors), entries)
    result = _record(entries, values=values)
    result.partial = bool(selectors)
    return result


def entries_of(selection: Selection, entries: Inventory) -> Inventory:
    """The entries that belong to a selection: its tensors, their flags, and all of its modules.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
        >>> list(entries_of(select(model, "1"), inventory(model)))
        ['1.training', '1.p']
    """
    tensors = selection.parameters.keys() | selection.buffers.keys()

    def belongs(entry: Entry) -> bool:
        if entry.kind == "requires_grad":
            return entry.path.removesuffix(".requires_grad") in tensors
        return entry.path in tensors if entry.is_tensor else entry.module in selection.modules

    return Inventory({path: entry for path, entry in entries.items() if belongs(entry)})


def record_entries(entries: Inventory, *, values: Values = False) -> Snapshot:
    """A partial snapshot of exactly these entries."""
    result = _record(entries, values=values)
    result.partial = True
    return result


def _read_record(row: Mapping[str, Any]) -> Record:
    fields: dict[str, Any] = dict(row)
    fields["shape"] = None if row["shape"] is None else tuple(row["shape"])
    if "part" in row:
        fields["part"] = tuple(map(tuple, row["part"]))
    return Record(**fields)


def _looked_at(entries: Inventory, before: Mapping[str, Record] | None = None) -> dict[str, tuple[Tensor, Part | None]]:
    """What of each tensor is looked at, and which part of it that is: what this process holds.

    FSDP2 puts whole parameters in the place of shards for as long as a forward or backward pass needs them. Of those
    the part that ``before`` knows is looked at.
    """
    found: dict[str, tuple[Tensor, Part | None]] = {}
    for path, tensor in entries.tensors.items():
        record = before.get(path) if before is not None else None
        if is_distributed(tensor):
            found[path] = own_part(tensor), part_of(tensor)
        elif record is not None and record.part is not None and tuple(tensor.shape) == record.shape:
            found[path] = cut(tensor.detach(), record.part), record.part
        else:
            found[path] = tensor, None
    return found


def _record(
    entries: Inventory, *, values: Values, live: Mapping[str, tuple[Tensor, Part | None]] | None = None
) -> Snapshot:
    live = _looked_at(entries) if live is None else live
    digests = digest_all({path: part for path, (part, _) in live.items()})
    records: dict[str, Record] = {}
    for path, entry in entries.items():
        common = (path, entry.kind, entry.role, entry.module, entry.module_type)
        if entry.is_tensor:
            keep = values is True or (values == "buffers" and entry.kind == "buffer")
            held, part = live[path]
            copy = held.detach().to("cpu", copy=True) if keep else None
            records[path] = Record(
                *common,
                digests[path],
                dtype=_dtype(entry.value),
                shape=tuple(entry.value.shape),
                value=copy,
                part=part,
            )
        else:
            records[path] = Record(*common, _mark(entry))
    return Snapshot(records)


def _mark(entry: Entry) -> str | bool | int | float | None:
    """A value that compares equal exactly when the entry is unchanged."""
    value = entry.value
    if entry.kind == "extra":
        return digest_value(value, name=entry.path)
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)


def _compare(before: Snapshot, after: Snapshot, live: Mapping[str, Tensor]) -> StateDiff:
    moved: list[Change] = []
    still = 0
    for path, old in before.items():
        new = after.get(path)
        if new is None:
            moved.append(_change(old, "removed", after=None))
        elif (old.mark, *_type(old)) == (new.mark, *_type(new)):
            still += 1
        elif _type(old) != _type(new):
            only_the_part = replace(old, part=new.part)
            what = "resharded" if _type(only_the_part) == _type(new) else "retyped"
            row = _change(old, what, after=_describe(new))
            moved.append(replace(row, before=_describe(old)))
        else:
            size = _difference(old.value, live.get(path))
            moved.append(_change(old, "changed", after=new.mark, max_abs=size[0], mean_abs=size[1]))
    if not before.partial:
        for path, new in after.items():
            if path not in before:
                row = _change(new, "added", after=new.mark)
                moved.append(replace(row, before=None))
    return StateDiff(moved, still)


def _type(record: Record) -> tuple[object, ...]:
    """What has to be the same before values can be compared."""
    return record.dtype, record.shape, record.kind, record.part


def _describe(record: Record) -> str:
    sharded = "" if record.part is None else f", of which {record.part[1]} at {record.part[0]}"
    return f"{record.kind} {record.dtype} {record.shape}{sharded}"


def _change(
    record: Record,
    change: str,
    *,
    after: str | bool | int | float | None,
    max_abs: float | None = None,
    mean_abs: float | None = None,
) -> Change:
    common = (record.path, record.kind, record.role, record.module, record.module_type)
    return Change(*common, change, record.mark, after, max_abs, mean_abs)


def _difference(before: Tensor | None, after: Tensor | None) -> tuple[float | None, float | None]:
    if before is None or after is None or before.numel() == 0:
        return None, None
    wide = torch.complex128 if before.is_complex() else torch.float64
    if before.is_quantized:
        before, after = before.dequantize(), after.dequantize()
    try:
        old, new = before.to(wide), after.detach().cpu().to(wide)
    except NotImplementedError:  # dtypes that are nothing but bits (float4_e2m1fn_x2) have no numbers to subtract
        return None, None
    gap = (new - old).abs()
    # Infinities of one sign, and NaNs on both sides, are equal although their difference is NaN.
    gap = torch.where((new == old) | (new.isnan() & old.isnan()), 0.0, gap)
    return float(gap.max()), float(gap.mean())


def _fits(record: Record, entry: Entry | None) -> bool:
    if entry is None or entry.kind != record.kind:
        return False
    if not entry.is_tensor:
        return True
    return not is_lazy(entry.value) and (_dtype(entry.value), tuple(entry.value.shape)) == (record.dtype, record.shape)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _copy(target: Tensor, value: Tensor) -> None:
    """Copy in place; an expanded dimension (stride 0) is one element many times, and is written once."""
    for dimension, (size, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if size > 1 and stride == 0:
            target, value = target.narrow(dimension, 0, 1), value.narrow(dimension, 0, 1)
    # A tensor that was made in inference mode can be written to in that mode only.
    with torch.inference_mode() if target.is_inference() else torch.no_grad():
        # Not through `detach()`: a quantized tensor keeps its scale to itself, not in the memory that both share.
        target.copy_(value)
