"""Start a model from a checkpoint: all of it or nothing, and checked by value.

Plans first: every tensor of the model is covered by name, shape and a dtype that loses nothing, or nothing is changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from frostline.checkpoint.container import WRAPPER_TOKENS
from frostline.checkpoint.read import Checkpoint, read_tensors
from frostline.errors import CheckpointError, name_some
from frostline.state.digest import digest
from frostline.state.inventory import Inventory, inventory
from frostline.state.names import fold, is_under

MOST_NAMES = 8


@dataclass(frozen=True)
class StartReport:
    """What a model was started with.

    Attributes:
        path: the checkpoint.
        loaded: paths in the model whose values came from the file.
        elements: how many numbers those are.
        zeroed: counters of batch norm that the file does not have, set to 0.
        cast: paths whose dtype in the file is another one; no value changed by it.
        left_out: names in the file that were not used, because they were excepted or are recomputed by the model.
        container: the keys that led to the tensors.
        stripped: wrapper names that were taken out of names.
        summary: all of it in one line.
    """

    path: Path
    loaded: tuple[str, ...]
    elements: int
    zeroed: tuple[str, ...]
    cast: tuple[str, ...]
    left_out: tuple[str, ...]
    container: tuple[str, ...]
    stripped: tuple[str, ...]
    summary: str


def start_from(model: nn.Module, path: str | os.PathLike[str], *, except_prefixes: Sequence[str] = ()) -> StartReport:
    """Give a model the values of a checkpoint: every parameter and every buffer, or none.

    Changes values in place; parameters stay the same objects, so optimizers keep working, and modes and
    ``requires_grad`` stay as they are. Whatever goes wrong, the model is left as it was.

    Args:
        model: the model; its names decide which entries of the file are wanted.
        path: the checkpoint, of any format that :func:`~frostline.checkpoint.read.read_tensors` reads.
        except_prefixes: dotted paths that keep their values, such as a classifier of another width; entries of the
            file under them are left out, whatever their shape.

    Returns:
        What was loaded, and what was not.

    Raises:
        CheckpointError: a tensor of the model has no entry of its name, shape and a dtype that fits without loss, or
            an entry of the file has no tensor. A missing ``num_batches_tracked`` is set to 0 instead.
        CorruptCheckpoint: the file cannot be read.
        UnsafeCheckpoint: the file wants to run code.

    Example:
        >>> import tempfile
        >>> source, model = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"model": source.state_dict()}, f"{folder}/linear.pt")
        ...     print(start_from(model, f"{folder}/linear.pt").summary)
        linear.pt: 2 of 2 tensors, 9 elements; container 'model'
        >>> torch.equal(model.weight, source.weight)
        True
    """
    entries = inventory(model)
    own_names = {part for name in entries.tensors for part in name.split(".")}
    source = read_tensors(path, keep=WRAPPER_TOKENS.intersection(own_names))
    plan = _plan(entries, source.tensors, tuple(except_prefixes))
    if plan.missing or plan.unexpected or plan.mismatched:
        raise _refusal(source, entries, plan)
    _apply(entries.tensors, plan.values, source.path)
    return _report(source, plan)


@dataclass
class _Plan:
    """The value of each live tensor, and what stands in the way."""

    values: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    zeroed: list[str] = field(default_factory=list[str])
    cast: list[str] = field(default_factory=list[str])
    left_out: list[str] = field(default_factory=list[str])
    missing: list[str] = field(default_factory=list[str])
    unexpected: list[str] = field(default_factory=list[str])
    mismatched: list[str] = field(default_factory=list[str])


def _plan(entries: Inventory, source: Mapping[str, Tensor], except_prefixes: Sequence[str]) -> _Plan:
    def excepted(name: str) -> bool:
        return any(is_under(name, prefix) for prefix in except_prefixes)

    plan = _Plan()
    wanted = {
        name: entry
        for name, entry in entries.items()
        if entry.persistent and not excepted(name) and not (entry.kind == "extra" and entry.value is None)
    }
    # A tensor under several names needs its value under one of them: some formats keep the first name alone.
    first_name = {id(wanted[name].value): name for name in reversed(wanted) if name in source}
    for name, entry in wanted.items():
        first = first_name.get(id(entry.value))
        if first is None:
            if entry.role == "norm.count":
                plan.values[name] = torch.zeros_like(entry.value, device="cpu")
                plan.zeroed.append(name)
            else:
                plan.missing.append(name)
            continue
        value = source.get(name, source[first])
        reason = _why_not(entry.value, value)
        if not reason and name in source and name != first and digest(value) != digest(source[first]):
            reason = f"in the model the same tensor as {first}, in the file another"
        if reason:
            plan.mismatched.append(f"{name} ({reason})")
            continue
        plan.values[name] = value.to(entry.value.dtype)
        if value.dtype != entry.value.dtype:
            plan.cast.append(name)
    for name in source:
        if name not in wanted:
            # Buffers that are not persistent are recomputed by the model; old files still carry them.
            known = excepted(name) or (name in entries and entries[name].is_tensor)
            (plan.left_out if known else plan.unexpected).append(name)
    return plan


def _why_not(target: Tensor, value: Tensor) -> str:
    """Why a live tensor cannot take a value; empty if it can."""
    if torch.nn.parameter.is_lazy(target):
        return "not materialized yet: run the model once before"
    if "meta" in {target.device.type, value.device.type}:
        return "on the meta device, which holds no values"
    if target.layout != value.layout:
        return f"{value.layout} in the file, {target.layout} in the model"
    if target.shape != value.shape:
        return f"{tuple(value.shape)} in the file, {tuple(target.shape)} in the model"
    if target.dtype == value.dtype:
        return ""
    same_kind = (target.is_floating_point(), target.is_complex()) == (value.is_floating_point(), value.is_complex())
    if same_kind and digest(value.to(target.dtype).to(value.dtype)) == digest(value):
        return ""
    return f"{_short(value.dtype)} in the file loses values as {_short(target.dtype)}"


def _apply(targets: Mapping[str, Tensor], values: Mapping[str, Tensor], path: Path) -> None:
    """Write all values and compare them; on any failure put back what was there."""
    before = {name: targets[name].detach().clone() for name in values}
    try:
        with torch.no_grad():
            for name, value in values.items():
                targets[name].copy_(value)
        wrong = [name for name, value in values.items() if digest(targets[name]) != digest(value)]
        if wrong:
            raise CheckpointError(
                f"{path.name} did not arrive: {len(wrong)} tensors differ after writing; nothing was changed\n"
                f"  differing: {name_some(wrong)}\n"
                "  fix: tensors that share memory without being the same tensor need a start of their own"
            )
    except BaseException:
        with torch.no_grad():
            for name, value in before.items():
                targets[name].copy_(value)
        raise


def _refusal(source: Checkpoint, entries: Inventory, plan: _Plan) -> CheckpointError:
    lines = [f"{source.path.name} does not fit the model; nothing was changed"]
    for title, names in (
        ("missing in the file", plan.missing),
        ("unexpected in the file", plan.unexpected),
        ("different", plan.mismatched),
    ):
        if names:
            lines.append(f"  {title}: {len(names)}")
            lines += [f"    {name}" for name in names[:MOST_NAMES]]
            lines += [f"    (+{len(names) - MOST_NAMES} more)"] if len(names) > MOST_NAMES else []
    if not entries.keys() & source.tensors.keys():
        lines.append("  no name in the file is a name of the model: it is a checkpoint of another kind of model")
    lines.append("  fix: a checkpoint of this very model")
    return CheckpointError("\n".join(lines))


def _report(source: Checkpoint, plan: _Plan) -> StartReport:
    loaded = tuple(name for name in plan.values if name not in set(plan.zeroed))
    elements = sum(plan.values[name].numel() for name in loaded)
    said = [f"{source.path.name}: {len(loaded)} of {len(loaded)} tensors, {elements:,} elements"]
    if source.container:
        said.append(f"container {'.'.join(source.container)!r}")
    if source.prefix:
        said.append(f"prefix {source.prefix!r} stripped")
    elif source.stripped:
        said.append(f"{name_some([repr(token) for token in source.stripped])} stripped from names")
    if plan.zeroed:
        said.append(f"num_batches_tracked absent x{len(plan.zeroed)} -> 0")
    if plan.cast:
        said.append(f"cast without loss x{len(plan.cast)}")
    if plan.left_out:
        said.append(f"left out {name_some([str(folded) for folded in fold(plan.left_out)])}")
    return StartReport(
        path=source.path,
        loaded=loaded,
        elements=elements,
        zeroed=tuple(plan.zeroed),
        cast=tuple(plan.cast),
        left_out=tuple(plan.left_out),
        container=source.container,
        stripped=source.stripped,
        summary="; ".join(said),
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
