"""Compares two checkpoints by value, piece by piece, so that neither has to fit into memory.

Knows tensors and bytes; what the rows mean is said by `comparison`. Shares no code with what writes checkpoints.
Arithmetic is numpy's: torch starts further threads of its own in each thread that it is called from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frostline.checkpoint.compared_row import Row
from frostline.checkpoint.comparison import Comparison
from frostline.checkpoint.stored import StoredTensor, dtype_name
from frostline.checkpoint.units import role_in, units_of
from frostline.state.names import parent

# Two pieces, and the differences between them, stay in a processor's cache between being read and being compared.
_PIECE = 2**20
# With more, memory would be spent for speed that the disk does not have.
_MOST_THREADS = 4
# Below this many bytes in all, starting threads costs more than it saves.
_WORTH_THREADS = 8 * 2**20
# What the bits of an element are compared as; a wider one is several of these.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
_KNOWN = (torch.float64, torch.float32, torch.float16)


@dataclass(frozen=True)
class _Gap:
    """How far two tensors of one shape and dtype are apart."""

    max_abs: float | None
    mean_abs: float | None
    elements_changed: int
    nans_gained: int = 0
    nans_lost: int = 0


def compare(
    before: Mapping[str, StoredTensor], after: Mapping[str, StoredTensor], *, values: bool = True
) -> Comparison:
    """Say what differs between two checkpoints. Neither is changed.

    Names are compared as they are. Equal means equal to the bit: the payload of a NaN and the sign of a zero count.
    Differences are taken in float64, of complex numbers in complex128; infinities of one sign, and NaNs on both sides,
    are no difference. Tensors are read once, a megabyte at a time as far as their readers can, on at most four threads.

    Args:
        before: name to tensor.
        after: likewise.
        values: whether to read values; without them, tensors of one shape and dtype are ``alike``.

    Returns:
        The :class:`~frostline.checkpoint.comparison.Comparison`.

    Raises:
        CorruptCheckpoint: a file has changed or is damaged.

    Example:
        >>> from frostline.checkpoint.stored import in_memory
        >>> old, new = {"fc.bias": in_memory(torch.zeros(3))}, {"fc.bias": in_memory(torch.tensor([0.0, 0.5, 0.0]))}
        >>> row = compare(old, new).moved[0]
        >>> row.change, row.role, row.max_abs, row.elements_changed
        ('changed', 'bias', 0.5, 1)
    """
    pairs = {
        name: (old, after[name])
        for name, old in before.items()
        if name in after and (old.shape, old.dtype) == (after[name].shape, after[name].dtype)
    }
    gaps = _gaps(pairs) if values else {}
    entries = {**before, **after}
    # Names that no module of Python can have (".a" beside "a") are not told apart as parts of one.
    roles = {name: (parent(name), "parameter") for name in entries}
    for unit in units_of({name: entry.shape for name, entry in entries.items()}).values():
        roles |= {name: (unit.path, role_in(unit, role)) for role, name in unit.leaves.items()}
    return Comparison(
        tuple(
            _row(name, *roles[name], before.get(name), after.get(name), name in pairs, gaps.get(name))
            for name in entries
        )
    )


def _row(
    path: str,
    module: str,
    role: str,
    old: StoredTensor | None,
    new: StoredTensor | None,
    is_pair: bool,
    gap: _Gap | None,
) -> Row:
    if old is None or new is None:
        change = "added" if old is None else "removed"
    elif not is_pair:
        change = "retyped" if old.shape == new.shape else "reshaped"
    elif gap is None:
        change = "alike"
    else:
        change = "changed" if gap.elements_changed else "same"
    entry = new or old
    assert entry is not None
    return Row(
        path=path,
        module=module,
        role=role,
        change=change,
        shape_before=old.shape if old else None,
        shape_after=new.shape if new else None,
        dtype_before=dtype_name(old.dtype) if old else None,
        dtype_after=dtype_name(new.dtype) if new else None,
        elements=entry.numel,
        max_abs=gap.max_abs if gap else None,
        mean_abs=gap.mean_abs if gap else None,
        elements_changed=gap.elements_changed if gap else None,
        nans_gained=gap.nans_gained if gap else None,
        nans_lost=gap.nans_lost if gap else None,
    )


def _gaps(pairs: Mapping[str, tuple[StoredTensor, StoredTensor]]) -> dict[str, _Gap]:
    """Compare all pairs, each once, whatever the number of its names."""
    first_name: dict[tuple[object, object], str] = {}
    owners = {name: first_name.setdefault((old.place, new.place), name) for name, (old, new) in pairs.items()}
    work = list(first_name.values())
    threads = min(_MOST_THREADS, torch.get_num_threads())
    if threads == 1 or sum(pairs[name][0].nbytes for name in work) < _WORTH_THREADS:
        found = [_gap(*pairs[name]) for name in work]
    else:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(lambda name: _gap(*pairs[name]), work))
    gaps = dict(zip(work, found, strict=True))
    return {name: gaps[owner] for name, owner in owners.items()}


def _gap(old: StoredTensor, new: StoredTensor) -> _Gap:
    largest, total, changed = 0.0, 0.0, 0
    gained, lost = 0, 0
    has_numbers = True
    # Memory that is taken anew for each piece would cost more time than the arithmetic does.
    wide = np.complex128 if old.dtype.is_complex else np.float64
    room = np.empty(min(_PIECE, old.nbytes) // old.dtype.itemsize, wide)
    for one, other in zip(old.pieces(_PIECE), new.pieces(_PIECE), strict=True):
        if _same(one, other):
            continue
        changed += _differing(one, other, old.dtype.itemsize)
        distances = _distances(one.view(old.dtype), other.view(old.dtype), room) if has_numbers else None
        if distances is None:
            has_numbers = False
            continue
        peak = float(distances.max())
        if peak > largest or math.isnan(peak):
            largest = peak
        total += float(distances.sum())
        if math.isnan(peak):
            came, went = _nans(one.view(old.dtype), other.view(old.dtype))
            gained, lost = gained + came, lost + went
    if not has_numbers:
        return _Gap(None, None, changed)
    return _Gap(largest, total / max(1, old.numel), changed, gained, lost)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two runs of bytes are equal, eight at a time where that comes out even."""
    width = np.int64 if one.numel() % 8 == 0 else np.uint8
    return np.array_equal(one.numpy().view(width), other.numpy().view(width))


def _differing(one: Tensor, other: Tensor, itemsize: int) -> int:
    """How many elements are not equal to the bit."""
    width = _INTEGERS.get(itemsize, torch.int64)
    unequal: Any = one.view(width).numpy() != other.view(width).numpy()
    if itemsize > width.itemsize:
        unequal = unequal.reshape(-1, itemsize // width.itemsize).any(axis=1)
    return int(np.count_nonzero(unequal))


def _distances(old: Tensor, new: Tensor, room: Any) -> Any:
    """The absolute differences as an array, or nothing where elements are but bits (``float4_e2m1fn_x2``)."""
    try:
        one, other = _numbers(old), _numbers(new)
    except NotImplementedError:
        return None
    with np.errstate(all="ignore"):
        distances = np.subtract(other, one, out=room[: old.numel()], dtype=room.dtype)
        distances = np.abs(distances) if old.is_complex() else np.abs(distances, out=distances)
        if np.isnan(distances.max()):
            # Infinities of one sign, and NaNs on both sides, are equal although their difference is NaN.
            distances[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0
    return distances


def _nans(old: Tensor, new: Tensor) -> tuple[int, int]:
    """How many elements are NaN in the second alone, and in the first alone."""
    was, now = np.isnan(_numbers(old)), np.isnan(_numbers(new))
    return int(np.count_nonzero(now & ~was)), int(np.count_nonzero(was & ~now))


def _numbers(values: Tensor) -> Any:
    """Values as numpy has them; what it does not know (``bfloat16``, ``float8``) fits into float32 without loss."""
    if values.dtype is torch.complex32:
        values = torch.view_as_complex(torch.view_as_real(values).float())
    if values.is_floating_point() and values.dtype not in _KNOWN:
        values = values.float()
    return values.numpy()
