"""Checkpoints under other names, as files or folders that carry the plan that made them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from frostline.checkpoint.container import WRAPPER_TOKENS
from frostline.checkpoint.distributed_writer import write_distributed
from frostline.checkpoint.norm_settings import HEADER, norm_settings
from frostline.checkpoint.opened import Checkpoint, open_checkpoint
from frostline.checkpoint.paper import check_same_files, read_plan
from frostline.checkpoint.plan import LoadPlan, Row
from frostline.checkpoint.stored import StoredTensor, dtype_name, in_memory
from frostline.checkpoint.tensor_writer import write_tensors
from frostline.errors import CheckpointError, name_some, printable
from frostline.state.inventory import inventory

PLAN = "frostline.plan"
Form: TypeAlias = Literal["safetensors", "distributed"]


def write_plan(plan: LoadPlan, path: str | os.PathLike[str]) -> str:
    """Write what a plan loads as a safetensors file under the model's names, whole or not at all.

    The header carries the plan, and the settings of the model's normalization layers. Neither model nor checkpoint is
    changed. What the model keeps is not written.

    Returns:
        The combined digest of the tensors.

    Raises:
        CheckpointError: the plan is incomplete, or a cast would lose values.
        StorageFull: there is no space left; what was there before is still there.
    """
    return write_tensors(path, *plan_entries(plan))


def plan_entries(plan: LoadPlan) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """What a plan loads, under the model's names, and the texts that go beside it.

    Raises:
        CheckpointError: the plan is incomplete.
    """
    plan.check()
    entries = _entries(plan.rows, plan.source, inventory(plan.model).tensors)
    metadata = {"format": "pt", PLAN: json.dumps(plan.to_json()), HEADER: json.dumps(norm_settings(plan.model))}
    return entries, metadata


def convert(
    source: str | os.PathLike[str],
    plan: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: Form = "safetensors",
    allow_pickle: bool = False,
) -> int:
    """Do to a checkpoint what a plan on paper says, without the model.

    Args:
        source: the checkpoint that was planned with.
        plan: what :func:`save_plan` wrote; it may have been edited.
        out: the file or folder to write, whole or not at all.
        to: a ``"safetensors"`` file, or ``"distributed"``: a folder of ``torch.distributed.checkpoint``, which does not
            exist yet or is empty.
        allow_pickle: run whatever code the checkpoint brings. Only for files that you trust as you trust a program.

    Returns:
        How many tensors were written.

    Raises:
        CheckpointError: the plan is no plan, is incomplete, or is for another checkpoint; or ``out`` is the plan or a
            file of the checkpoint itself.
        UnsafeCheckpoint: the checkpoint wants to run code, and ``allow_pickle`` does not let it.
    """
    told = read_plan(plan)
    if not (told.complete and any(row.is_loaded for row in told.rows)) or any(row.is_in_the_way for row in told.rows):
        raise CheckpointError(f"{plan} is an incomplete plan\n  fix: frostline plan says what is in the way")
    checkpoint = open_checkpoint(
        source, take=told.take, keep=WRAPPER_TOKENS - set(told.stripped), allow_pickle=allow_pickle
    )
    _check_apart(out, (*checkpoint.files, Path(plan)))
    check_same_files(told, checkpoint, str(plan))
    unsaid = left_unsaid(told.rows, checkpoint)
    if unsaid:
        raise CheckpointError(f"{plan} says nothing of {name_some(unsaid)} in {checkpoint.title}\n  fix: plan again")
    entries = _entries(told.rows, checkpoint, {})
    if to == "distributed":
        return write_distributed(out, lambda: {**{name: e.read() for name, e in entries.items()}, PLAN: told.text})
    write_tensors(out, entries, {"format": "pt", PLAN: told.text})
    return len(entries)


def _check_apart(out: str | os.PathLike[str], read: Iterable[Path]) -> None:
    """Raise where what is written would take the place of what is read."""
    for file in read:
        if os.path.exists(out) and os.path.exists(file) and os.path.samefile(out, file):
            raise CheckpointError(
                f"{printable(os.fspath(out))} is what is read, and would be replaced\n  fix: another name"
            )


def _entries(rows: Iterable[Row], checkpoint: Checkpoint, current: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """What the rows of a plan load, by the names of the model."""
    entries: dict[str, StoredTensor] = {}
    for row in rows:
        if row.target and row.verdict == "filled:0":
            entries[row.target] = in_memory(filled(row))
        elif row.target and row.is_loaded:
            entries[row.target] = converted_tensor(row, checkpoint, current.get(row.target))
    return entries


@dataclass(frozen=True, eq=False)
class _Converted(StoredTensor):
    """A tensor as it is after the operations of a row."""

    row: Row
    entry: StoredTensor
    current: Tensor | None

    def read(self) -> Tensor:
        """The values, made anew each time."""
        value = self.entry.read()
        for operation in self.row.operations:
            try:
                value = operation.run(value, self.current)
            except Exception as error:  # a plan that someone wrote may ask for anything
                where = f"{self.row.source} -> {self.row.target}: {operation}"
                said = "\n".join(map(printable, str(error).splitlines()))
                raise CheckpointError(f"{printable(where)}: {said}") from error
        if tuple(value.shape) != self.shape or value.dtype != self.dtype:
            raise CheckpointError(
                f"{printable(str(self.row.target))} should have shape {self.shape} and type {dtype_name(self.dtype)}\n"
                f"  found: {tuple(value.shape)} and {dtype_name(value.dtype)}\n  fix: plan again"
            )
        return value.contiguous()


def converted_tensor(row: Row, checkpoint: Checkpoint, current: Tensor | None) -> StoredTensor:
    """The tensor of a row after its operations, which are run when it is read.

    Args:
        row: what is done to which tensor.
        checkpoint: where it comes from.
        current: what the model has, for operations that keep a part of it.

    Raises:
        CheckpointError: the checkpoint has no such tensor.
    """
    entry = _find(row, checkpoint)
    if entry is None:
        raise CheckpointError(
            f"{checkpoint.title} has no tensor {printable(str(row.source))}, which the plan takes\n  fix: plan again"
        )
    dtype = _dtype(row.dtype_target)
    if not row.operations and (entry.shape, entry.dtype) == (row.shape_target, dtype):
        return entry
    return _Converted(row.shape_target or (), dtype, entry.place, row, entry, current)


def left_unsaid(rows: Iterable[Row], checkpoint: Checkpoint) -> list[str]:
    """The names in a checkpoint of which no row says what becomes of them."""
    said = {row.source for row in rows}
    names = [*map(checkpoint.whole_name, checkpoint.tensors), *checkpoint.outside]
    return [name for name in names if name not in said]


def filled(row: Row) -> Tensor:
    """The zero of a counter that the checkpoint lacks.

    Raises:
        CheckpointError: the plan fills what is no counter.
    """
    if row.shape_target is None or math.prod(row.shape_target) != 1:
        raise CheckpointError(
            f"the plan fills {printable(str(row.target))} of shape {row.shape_target}, which is no counter\n"
            "  fix: plan again"
        )
    return torch.zeros(row.shape_target, dtype=_dtype(row.dtype_target))


def _find(row: Row, checkpoint: Checkpoint) -> StoredTensor | None:
    prefix = f"{checkpoint.subtree}." if checkpoint.subtree else ""
    return checkpoint.tensors.get((row.source or "").removeprefix(prefix))


def _dtype(name: str | None) -> torch.dtype:
    found = getattr(torch, name or "", None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"the plan names a type {name!r}, which torch does not have\n  fix: plan again")
    return found
