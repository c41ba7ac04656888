"""Gives each entry of a model and of a checkpoint its verdict: names first, then shapes and types.

Knows both sides, and what was asked for; knows nothing of how the plan is told or carried out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from frostline.checkpoint.adapters import Adapter, ClassRows, Narrow
from frostline.checkpoint.held import is_held
from frostline.checkpoint.infer import infer
from frostline.checkpoint.opened import Checkpoint
from frostline.checkpoint.operations import Operation
from frostline.checkpoint.patterns import is_meant, meant_by
from frostline.checkpoint.plan import Row
from frostline.checkpoint.prefixes import Prefix, find_prefix
from frostline.checkpoint.stored import StoredTensor, dtype_name
from frostline.checkpoint.units import Unit, units_of
from frostline.errors import CheckpointError
from frostline.state import names
from frostline.state.inventory import Entry, Inventory


@dataclass(frozen=True)
class _Pair:
    """An assignment of a tensor, by its name in the checkpoint, to an entry of the model."""

    source: str
    confidence: str
    why: str = ""
    tied: bool = False


class Planner:
    """One plan in the making. Names of the checkpoint are those below the path that was taken.

    Args:
        model: the model, without wrappers.
        entries: all of its state.
        checkpoint: what it takes values from.
        adapters: patterns on names of the model, and what may make shapes fit there.
        accept_ambiguous: take an assignment that another one could equal.
    """

    def __init__(
        self,
        model: nn.Module,
        entries: Inventory,
        checkpoint: Checkpoint,
        adapters: list[tuple[str, Adapter]],
        accept_ambiguous: bool,
    ) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.entries, self.checkpoint, self.adapters = entries, checkpoint, adapters
        self.accept_ambiguous = accept_ambiguous
        self.targets = {
            name: entry
            for name, entry in entries.items()
            if entry.persistent and not (entry.kind == "extra" and entry.value is None)
        }
        # What a file need not have: a counter of batch norm, and a tensor that is there under another of its names.
        self.free = dict(checkpoint.tensors)
        self.pairs: dict[str, _Pair] = {}
        self.dropped: dict[str, str] = {}
        self.unexpected: dict[str, str] = {}
        self.kept: set[str] = set()
        self.rivals: dict[str, str] = {}
        self.used_adapters: set[int] = set()

    def leave_out(self, drops: Sequence[str]) -> None:
        """Take out what is not wanted."""
        whole = {self.checkpoint.whole_name(name): name for name in self.checkpoint.tensors}
        known = [*self.checkpoint.tensors, *whole, *self.checkpoint.outside]
        meant = meant_by(known, drops, argument="drop", where=self.checkpoint.title)
        for name, short_name in whole.items():
            if meant & {name, short_name}:
                self.dropped[short_name] = "drop="
                del self.free[short_name]

    def keep(self, kept: set[str]) -> None:
        """Entries of the model that keep their values."""
        self.kept = kept & self.targets.keys()

    def pair_by_name(self, renamed: Mapping[str, tuple[str, ...]]) -> None:
        """Assign what has the same name, or has it by a rule."""
        for name in list(self.free):
            for new in renamed.get(name, (name,)):
                self._pair_name(name, new, by_rule=name in renamed)

    def _pair_name(self, name: str, new: str, *, by_rule: bool) -> None:
        if new in self.kept:
            self.dropped[name] = f"its place, {new}, keeps what it has"
        elif new in self.targets and self.targets[new].is_tensor:
            self.pairs[new] = _Pair(name, "rule" if by_rule else "exact")
        elif new in self.entries and self.entries[new].is_tensor and not self.entries[new].persistent:
            # Old files carry buffers that models now compute themselves.
            self.dropped[name] = "the model computes it"
        elif by_rule:
            self.unexpected[name] = f"renamed to {new}, which the model does not have"
        else:
            return
        self.free.pop(name, None)

    def pair_by_structure(self) -> None:
        """Assign what is left: roles in modules of one name, a common prefix, then the structure of modules."""
        self._pair_roles()
        open_targets = self._open_targets()
        prefix = find_prefix({name: entry.shape for name, entry in self.free.items()}, _shapes(open_targets))
        if prefix is not None:
            self._pair_prefix(prefix)
        open_targets = self._open_targets()
        free = {name: entry.shape for name, entry in self.free.items()}
        if not free or not open_targets:
            return
        source_units, target_units = units_of(free), units_of(_shapes(open_targets))
        ordered = "safetensors" not in self.checkpoint.format
        for match in infer(source_units, target_units, ordered=ordered):
            self._pair_units(source_units[match.source], target_units[match.target], match.why, match.tied)
        self._pair_heads()

    def _open_targets(self) -> dict[str, Entry]:
        return {
            name: entry
            for name, entry in self.targets.items()
            if entry.is_tensor and name not in self.pairs and name not in self.kept
        }

    def _pair_roles(self) -> None:
        """``gamma`` for ``weight`` in a module that both sides have."""
        source_units = units_of({name: entry.shape for name, entry in self.free.items()})
        for path, unit in units_of(_shapes(self._open_targets())).items():
            mine = source_units.get(path)
            for role, target in unit.leaves.items():
                if mine is not None and role in mine.leaves and mine.leaves[role] != target:
                    self._assign(target, _Pair(mine.leaves[role], "inferred", f"both the {role} of {path}"))

    def _pair_prefix(self, prefix: Prefix) -> None:
        for source, target in prefix.pairs.items():
            self._assign(target, _Pair(source, "tied" if prefix.tied else "prefix", prefix.why, prefix.tied))
        self.rivals.update((name, prefix.why) for name in self.free if name in prefix.rivals)

    def _pair_units(self, source: Unit, target: Unit, why: str, tied: bool) -> None:
        for role, name in target.leaves.items():
            if role in source.leaves:
                self._assign(name, _Pair(source.leaves[role], "tied" if tied else "inferred", why, tied))

    def _pair_heads(self) -> None:
        """A lone layer on either side that differs in the number of classes alone is said to be that."""
        sources, targets = (
            [unit for unit in units_of(shapes).values() if unit.kind in {"linear", "conv"}]
            for shapes in ({n: e.shape for n, e in self.free.items()}, _shapes(self._open_targets()))
        )
        alike = [(s, t) for s in sources for t in targets if s.shapes["weight"][1:] == t.shapes["weight"][1:]]
        if len(alike) == 1 and len(sources) == len(targets) == 1:
            source, target = alike[0]
            if source.leaves.keys() == target.leaves.keys():
                self._pair_units(source, target, "the only layer left on either side; other classes?", False)

    def _assign(self, target: str, pair: _Pair) -> None:
        self.pairs[target] = pair
        self.free.pop(pair.source, None)

    def rows(self) -> list[Row]:
        """The verdicts: entries of the model in its order, then what only the checkpoint has."""
        first = self._first_names()
        rows = [self._row(name, entry, first) for name, entry in self.targets.items()]
        rows = self._filled(rows)
        whole = self.checkpoint.whole_name
        for name, entry in self.checkpoint.tensors.items():
            shape = (entry.shape, dtype_name(entry.dtype))
            if name in self.dropped:
                rows.append(_only_source(whole(name), "dropped", self.dropped[name], *shape))
            elif name in self.rivals:
                rows.append(_only_source(whole(name), "ambiguous", self.rivals[name], *shape))
            elif name in self.free or name in self.unexpected:
                rows.append(_only_source(whole(name), "unexpected", self.unexpected.get(name, ""), *shape))
        why = f"outside of take={self.checkpoint.subtree!r}"
        for name, entry in self.checkpoint.outside.items():
            rows.append(_only_source(name, "dropped", why, entry.shape, dtype_name(entry.dtype)))
        return rows

    def _first_names(self) -> dict[int, str]:
        """For each tensor of the model that has several names, the first that the checkpoint has a value for."""
        return {id(self.targets[name].value): name for name in reversed(list(self.targets)) if name in self.pairs}

    def _row(self, name: str, entry: Entry, first: Mapping[int, str]) -> Row:
        if not entry.is_tensor:
            verdict = "kept-init" if name in self.kept else "missing"
            return Row(name, None, verdict, why="" if name in self.kept else f"not a tensor but {entry.shown}")
        target: Tensor = entry.value
        here = Row(name, None, "missing", shape_target=_shape(target), dtype_target=dtype_name(target.dtype))
        own = self.pairs.get(name)
        known = first.get(id(target))
        if name in self.kept:
            shared = [alias for alias in entry.aliases if alias in self.pairs]
            if shared:
                return replace(
                    here, verdict="conflict(tied)", why=f"it shares memory with {shared[0]}, which is loaded"
                )
            return replace(here, verdict="kept-init", why="keep=")
        pair = own or (self.pairs[known] if known else None)
        if pair is None:
            return here
        stored = self.checkpoint.tensors[pair.source]
        row = replace(
            here,
            source=self.checkpoint.whole_name(pair.source),
            confidence=pair.confidence,
            why=pair.why,
            shape_source=stored.shape,
            dtype_source=dtype_name(stored.dtype),
        )
        if self._is_held(entry):
            return replace(row, verdict="held", why="a hold keeps it to the bit")
        if own is None:
            row = replace(row, why=f"the same tensor as {known}")
        elif known != name and known is not None and self._differ(self.pairs[known].source, own.source):
            return replace(row, verdict="conflict(tied)", why=f"in the model the same tensor as {known}")
        if pair.tied and not self.accept_ambiguous:
            return replace(row, verdict="ambiguous")
        return self._fitted(row, target, stored)

    def _fitted(self, row: Row, target: Tensor, stored: StoredTensor) -> Row:
        """The row with the operations that make the shape and the type fit, or with what is in the way."""
        assert row.target is not None
        reason = _unfit(target, stored)
        if reason:
            return replace(row, verdict="shape-mismatch", why=reason)
        adapters = [(i, each) for i, (pattern, each) in enumerate(self.adapters) if is_meant(row.target, pattern)]
        operations: list[Operation] = []
        for index, adapter in adapters:
            if stored.shape == target.shape and not adapter.fits_equal_shapes:
                continue
            operation = adapter.fit(stored.shape, tuple(target.shape))
            if operation is None and isinstance(adapter, ClassRows):
                counts = f"{len(adapter.source)} and {len(adapter.target)} classes"
                shapes = f"{stored.shape} and {tuple(target.shape)}"
                return replace(row, verdict="shape-mismatch", why=f"ClassRows of {counts} for shapes {shapes}")
            if operation is not None:
                self.used_adapters.add(index)
                operations.append(operation)
                break
        if not operations and stored.shape != target.shape:
            why = f"{stored.shape} in the checkpoint, {tuple(target.shape)} in the model"
            return replace(row, verdict="shape-mismatch", why=f"{why}; {row.why}" if row.why else why)
        verdict = _verdict(row, operations)
        if stored.dtype != target.dtype:
            if _kind(stored.dtype) != _kind(target.dtype):
                why = f"{dtype_name(stored.dtype)} in the checkpoint, {dtype_name(target.dtype)} in the model"
                return replace(row, verdict="shape-mismatch", why=why)
            narrow = [index for index, adapter in adapters if isinstance(adapter, Narrow)]
            self.used_adapters.update(narrow)
            operations.append(Operation("cast", {"to": dtype_name(target.dtype), "lossy": bool(narrow)}))
            verdict = "cast" if verdict in {"same", "renamed"} else verdict
        return replace(row, verdict=verdict, operations=tuple(operations))

    def _filled(self, rows: list[Row]) -> list[Row]:
        """Counters that the checkpoint lacks are 0 where the statistics beside them are loaded."""
        loaded = {row.target for row in rows if row.is_loaded or row.verdict == "ambiguous"}
        filled: list[Row] = []
        for row in rows:
            entry = self.targets[row.target or ""]
            beside = names.join(entry.module, "running_mean")
            if row.verdict == "missing" and entry.role == "norm.count" and beside in loaded:
                filled.append(replace(row, verdict="filled:0", why="a counter that old files lack"))
            else:
                filled.append(row)
        return filled

    def _is_held(self, entry: Entry) -> bool:
        return is_held(self.modules[entry.module], entry)

    def _differ(self, one: str, other: str) -> bool:
        """Whether two tensors of the checkpoint are different tensors with different values."""
        first, second = self.checkpoint.tensors[one], self.checkpoint.tensors[other]
        return first.place != second.place and first.digest() != second.digest()

    def check_adapters(self) -> None:
        """Refuse adapters that nothing was adapted with: they were meant for something."""
        for index, (pattern, adapter) in enumerate(self.adapters):
            if index not in self.used_adapters and not isinstance(adapter, ClassRows):
                raise CheckpointError(
                    f"adapt: {type(adapter).__name__} fits no tensor that {pattern!r} means\n"
                    "  fix: leave it away, or name the layer it is for"
                )


def _verdict(row: Row, operations: list[Operation]) -> str:
    if not operations:
        return "same" if row.confidence == "exact" else "renamed"
    operation = operations[0]
    if operation.name == "class-rows":
        return f"expanded:{len(operation.arguments['rows'])} of {operation.arguments['of']} rows"
    return f"adapted:{operation.name}"


def _unfit(target: Tensor, stored: StoredTensor) -> str:
    """Why a live tensor cannot take any value of a checkpoint; empty if it can."""
    if torch.nn.parameter.is_lazy(target):
        return "not materialized yet: run the model once before"
    if target.device.type == "meta":
        return "on the meta device, which holds no values"
    if target.layout is not torch.strided:
        return f"a tensor of layout {target.layout} in the model"
    value = getattr(stored, "value", None)
    if isinstance(value, Tensor) and (value.is_meta or value.layout is not torch.strided):
        return f"a tensor without plain values ({value.device.type}, {value.layout}) in the checkpoint"
    return ""


def _kind(dtype: torch.dtype) -> str:
    if dtype == torch.bool:
        return "bool"
    return "complex" if dtype.is_complex else "float" if dtype.is_floating_point else "integer"


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    return None if torch.nn.parameter.is_lazy(tensor) else tuple(tensor.shape)


def _shapes(entries: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, entry in entries.items() if (shape := _shape(entry.value)) is not None}


def _only_source(name: str, verdict: str, why: str, shape: tuple[int, ...], dtype: str) -> Row:
    return Row(None, name, verdict, why=why, shape_source=shape, dtype_source=dtype)
