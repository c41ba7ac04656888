"""Files that hold only what was trained, and the digest of everything else, so that they fit one base and no other.

Many heads on one trunk are many small files. A delta is a safetensors file; what it stands on is in its header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from frostline.attach.ledger import ledger_of
from frostline.checkpoint.delta_info import KEY, DeltaInfo, parse_delta
from frostline.checkpoint.readers.open_file import read_contents
from frostline.checkpoint.stored import StoredTensor, in_memory
from frostline.checkpoint.tensor_writer import DIGEST, combined_digest, write_tensors
from frostline.errors import CheckpointError, CorruptCheckpoint, name_some, printable
from frostline.state import names
from frostline.state.digest import digest_all, digest_value
from frostline.state.inventory import TENSOR_KINDS, Entry, inventory
from frostline.state.selection import Selector, select
from frostline.state.snapshot import Snapshot

Base: TypeAlias = "Snapshot | nn.Module | Mapping[str, Any]"
Selectors: TypeAlias = "Selector | Sequence[Selector]"


def save_delta(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    base: Base | None = None,
    trained: Selectors | None = None,
    beside: Selectors = (),
    name: str = "",
) -> DeltaInfo:
    """Write the part of a model that was trained, and the digest of the rest, whole or not at all.

    The model is only read. Buffers that a state dict does not carry are left out.

    Args:
        model: the model after training.
        path: the file; its folder exists.
        base: the model before training: a :class:`~frostline.state.snapshot.Snapshot`, a model or a state dict. Stored
            is what differs from it to the bit, and what it lacks.
        trained: or the part that was trained, as in :func:`~frostline.state.selection.select`; several in a list. What
            shares memory with it goes with it.
        beside: parts that have nothing to do with it, such as other heads: neither stored nor, when it is loaded,
            looked at. What ``trained`` names is not beside it.
        name: what it is called in listings.

    Returns:
        The :class:`DeltaInfo`.

    Raises:
        CheckpointError: not exactly one of ``base`` and ``trained`` was given, nothing was trained, the base is of
            another model, or an extra state was trained, which a delta cannot hold.
        StorageFull: there is no space left; what was there before is still there.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> kept = {path: value.clone() for path, value in model.state_dict().items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_delta(model, f"{folder}/a.safetensors", trained="2")
        ...     _ = torch.nn.init.zeros_(model[2].weight)
        ...     print(load_delta(model, f"{folder}/a.safetensors").tensors)
        2
        >>> torch.equal(model[2].weight, kept["2.weight"])
        True
    """
    if (base is None) == (trained is None):
        raise CheckpointError(
            f"save_delta: {'neither' if base is None else 'both'} of base and trained given\n"
            "  fix: base=, a snapshot from before training, or trained=, selectors of what was trained"
        )
    entries = _entries(model)
    marks = _marks(entries)
    aside = _meant(model, beside, entries)
    if base is not None:
        stored = _changed(base, entries, marks) - aside
    else:
        stored = _meant(model, cast("Selectors", trained), entries)
    # What shares memory with a stored tensor changes with it, and could not be part of the base.
    by_path = {entry.path: key for key, entry in entries.items()}
    stored |= {by_path[alias] for key in stored for alias in entries[key].aliases if alias in by_path}
    if not stored:
        raise CheckpointError(
            "save_delta: nothing to store\n"
            f"  found: {'no tensor differs from the base' if base is not None else 'only what no state dict carries'}\n"
            "  fix: the base from before training, or other selectors"
        )
    rest = {key: entry for key, entry in entries.items() if key not in stored | aside}
    base_entries = {key: marks[key] for key in rest}
    info = DeltaInfo(
        path=Path(path),
        name=name,
        model_type=type(names.unwrap(model)).__name__,
        tensors=len(stored),
        elements=sum(entries[key].numel for key in stored),
        nbytes=sum(entries[key].nbytes for key in stored),
        base_entries=base_entries,
        base_digest=combined_digest(base_entries),
        base_nbytes=sum(entry.nbytes for entry in rest.values()),
        beside=tuple(key for key in entries if key in aside - stored),
    )
    header = {field: value for field, value in info.to_json().items() if field != "path"}
    write_tensors(
        path,
        {key: in_memory(entries[key].value) for key in stored},
        {"format": "pt", KEY: json.dumps(header, separators=(",", ":"))},
    )
    return info


def load_delta(model: nn.Module, path: str | os.PathLike[str], *, beside: Selectors = ()) -> DeltaInfo:
    """Write a delta into a model that is its base, all of it or nothing; the result is compared by digest.

    Tensors are written in place, so that optimizers keep their parameters. Modes and ``requires_grad`` stay as they
    are. Another delta of the same base may have been written before: what both store is replaced.

    Args:
        model: the model, with the values of the base.
        path: what :func:`save_delta` wrote.
        beside: parts that the delta has nothing to do with, besides those that it names: they are not looked at.

    Returns:
        The :class:`DeltaInfo`.

    Raises:
        CheckpointError: the file is no delta, or the model is not its base, has no place for a tensor, or has one that
            is held. Nothing was changed.
        CorruptCheckpoint: the file is damaged.
    """
    contents = read_contents(path)
    info = parse_delta(contents.metadata, Path(path))
    stored = cast("Mapping[str, StoredTensor]", contents.root)
    values = {key: entry.read() for key, entry in stored.items()}
    digests = digest_all(values)
    if contents.metadata.get(DIGEST) != combined_digest(digests) or values.keys() & info.base_entries.keys():
        raise CorruptCheckpoint(
            f"{info.where} cannot be read\n  its tensors are not those that were saved\n  fix: restore it"
        )
    entries = _entries(model)
    marks = _marks(entries)
    aside = (_meant(model, beside, entries) | set(info.beside)) - values.keys()
    _check_base(info, model, {key: mark for key, mark in marks.items() if key not in values.keys() | aside}, aside)
    _check_fit(info, stored, entries)
    moving = [key for key in entries if key in values and marks[key] != digests[key]]
    _check_held(info, model, {key: entries[key] for key in moving})
    _write({key: (entries[key].value, values[key]) for key in moving}, entries, {**marks, **digests}, info)
    return info


def _entries(model: nn.Module) -> dict[str, Entry]:
    """What a state dict carries, by names without the tokens of wrappers."""
    found = [e for e in inventory(model).values() if e.persistent and (e.is_tensor or e.kind == "extra")]
    plain = {names.canonical(entry.path): entry for entry in found}
    return plain if len(plain) == len(found) else {entry.path: entry for entry in found}


def _marks(entries: Mapping[str, Entry]) -> dict[str, str]:
    """A digest for each."""
    tensors = digest_all({key: entry.value for key, entry in entries.items() if entry.is_tensor})
    return {
        key: tensors[key] if entry.is_tensor else digest_value(entry.value, name=key) for key, entry in entries.items()
    }


def _meant(model: nn.Module, selectors: Selectors, entries: Mapping[str, Entry]) -> set[str]:
    several = tuple(selectors) if isinstance(selectors, (list, tuple)) else (cast("Selector", selectors),)
    if not several:
        return set()
    selection = select(model, *several)
    paths = selection.parameters.keys() | selection.buffers.keys()
    return {key for key, entry in entries.items() if entry.is_tensor and entry.path in paths}


def _changed(base: Base, entries: Mapping[str, Entry], marks: Mapping[str, str]) -> set[str]:
    """The tensors that are not in the base as they are now."""
    before = _marks_of_base(base)
    if not before.keys() & entries.keys():
        raise CheckpointError(
            "save_delta: the base has none of the model's tensors\n"
            f"  found: {name_some(list(before)) or 'no tensors'}\n"
            f"  expected: {name_some(list(entries))}\n"
            "  fix: the snapshot or state dict of this very model"
        )
    changed = {key for key in entries if marks[key] != before.get(key)}
    extra = [key for key in entries if key in changed and not entries[key].is_tensor]
    if extra:
        raise CheckpointError(
            f"save_delta: extra states differ from the base, and a delta holds tensors only: {name_some(extra)}\n"
            "  fix: save the whole model with torch.save(model.state_dict())"
        )
    return changed


def _marks_of_base(base: Base) -> Mapping[str, object]:
    if isinstance(base, nn.Module):
        return _marks(_entries(base))
    if isinstance(base, Snapshot):
        kept = (record for record in base.values() if record.kind in {*TENSOR_KINDS, "extra"})
        return {names.canonical(record.path): record.mark for record in kept}
    tensors = {str(key): value for key, value in base.items() if isinstance(value, Tensor)}
    marks = digest_all({key: value for key, value in tensors.items() if not key.endswith("_extra_state")})
    extra = {
        names.join(names.parent(str(key)), "extra_state"): digest_value(value, name=str(key))
        for key, value in base.items()
        if str(key).endswith("_extra_state")
    }
    return {names.canonical(key): mark for key, mark in {**marks, **extra}.items()}


def _check_base(info: DeltaInfo, model: nn.Module, found: Mapping[str, str], aside: Collection[str]) -> None:
    """Refuse a model whose other tensors are not those that the delta was trained on."""
    expected = {key: mark for key, mark in info.base_entries.items() if key not in aside}
    lines = [
        f"  {title}: {len(keys):,} of {len(expected):,}: {name_some(keys, rest='read_delta_info(path).base_entries')}"
        for title, keys in (
            ("different", [key for key in expected if key in found and found[key] != expected[key]]),
            ("missing in the model", [key for key in expected if key not in found]),
            ("unknown to the delta", [key for key in found if key not in expected]),
        )
        if keys
    ]
    if lines:
        raise CheckpointError(
            "\n".join(
                [
                    f"{info.where} stands on another base; nothing was changed",
                    f"  expected: {printable(info.model_type)} with digest {combined_digest(expected)}",
                    f"  found: {type(names.unwrap(model)).__name__} with digest {combined_digest(found)}",
                    *lines,
                    "  fix: load its base first; what does not matter to it, as other heads, goes into beside=",
                ]
            )
        )


def _check_fit(info: DeltaInfo, stored: Mapping[str, StoredTensor], entries: Mapping[str, Entry]) -> None:
    unfit: list[str] = []
    for key, tensor in stored.items():
        entry = entries.get(key)
        if entry is None or not entry.is_tensor:
            unfit.append(f"{key} (the model has no such tensor)")
        elif (tuple(entry.value.shape), entry.value.dtype) != (tensor.shape, tensor.dtype):
            has = f"{tuple(entry.value.shape)} {entry.value.dtype}"
            unfit.append(f"{key} ({tensor.shape} {tensor.dtype} in the file, {has} in the model)")
    if unfit:
        raise CheckpointError(
            f"{info.where} does not fit the model; nothing was changed\n  found: {name_some(unfit)}\n"
            "  fix: a model with the head that was saved, such as frostline.replace_head makes"
        )


def _check_held(info: DeltaInfo, model: nn.Module, entries: Mapping[str, Entry]) -> None:
    """Refuse to write what a hold keeps."""
    modules = dict(names.unwrap(model).named_modules(remove_duplicate=False))
    held: list[str] = []
    for key, entry in entries.items():
        ledger = ledger_of(modules[entry.module])
        if ledger is None:
            continue
        grips = ledger.of_module
        if entry.kind == "parameter":
            grip = ledger.gradients.get(entry.path.rpartition(".")[2])
            grips = [grip] if grip else []
        levels = sorted({level for grip in grips for level in grip.tokens.values()})
        if levels:
            held.append(f"{key} (held, level {', '.join(levels)})")
    if held:
        raise CheckpointError(
            f"{info.where} would change what is held; nothing was changed\n  found: {name_some(held)}\n"
            "  fix: thaw the hold before, and freeze again afterwards"
        )


@torch.no_grad()
def _write(
    moving: Mapping[str, tuple[Tensor, Tensor]],
    entries: Mapping[str, Entry],
    expected: Mapping[str, str],
    info: DeltaInfo,
) -> None:
    """Write and compare everything, what was not written too; on any failure put back what was there."""
    undo: list[tuple[Tensor, Tensor]] = []
    try:
        for target, value in moving.values():
            undo.append((target, target.detach().clone()))
            target.copy_(value)
        found = _marks(entries)
        wrong = [key for key, mark in found.items() if mark != expected[key]]
        if wrong:
            raise CheckpointError(
                f"{info.where} did not arrive: tensors differ after writing; nothing was changed\n"
                f"  found: {name_some(wrong)}\n"
                "  fix: in this model they share memory with others, in the one that was saved they did not"
            )
    except BaseException:
        for target, before in reversed(undo):
            target.copy_(before)
        raise
