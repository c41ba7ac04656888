"""Checkpoints in several files: an index says which tensor is in which, or the files are numbered.

Knows indexes and names; reads no format of tensors itself.

Source: huggingface/transformers, ``modeling_utils.py``; the names are ``model.safetensors.index.json`` and
``pytorch_model.bin.index.json``.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from frostline.checkpoint.readers.contents import Contents
from frostline.checkpoint.readers.refusals import cut_short, reason, shown
from frostline.checkpoint.readers.source import SourceFile, absence, irregular, look_at
from frostline.checkpoint.stored import StoredTensor
from frostline.errors import CheckpointError, CorruptCheckpoint, name_some

_MAP = "weight_map"
_LONGEST_INDEX = 100_000_000


@dataclass(frozen=True)
class ShardSet:
    """Files that are one checkpoint together.

    Attributes:
        path: the index, or the folder of numbered shards.
        shards: the files, each once.
        assigned: which shard the index names for each tensor; empty without an index.
        index: the index, if there is one.
    """

    path: Path
    shards: tuple[Path, ...]
    assigned: Mapping[str, Path] = field(default_factory=dict[str, Path])
    index: Path | None = None


def is_index(source: SourceFile, head: bytes) -> bool:
    """Tell whether a file is JSON that could be an index."""
    return head.lstrip()[:1] == b"{" and source.size <= _LONGEST_INDEX


def read_index(source: SourceFile) -> ShardSet:
    """Read an index, and see whether all its shards are there.

    Args:
        source: the index.

    Returns:
        The shards, and which tensor is in which.

    Raises:
        CorruptCheckpoint: it is no index, or names files outside of its folder.
        CheckpointError: shards are missing, or are no files.
    """
    with source.open() as file:
        content = source.read(file, 0, source.size)
    try:
        index: object = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError, MemoryError) as error:
        raise cut_short(source.path, source.size, f"an index that cannot be read: {reason(error)}") from error
    found = cast("dict[str, object]", index).get(_MAP) if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found:
        raise CorruptCheckpoint(
            f"{shown(source.path)} is no checkpoint\n  found: JSON without a {_MAP}, so no index of shards\n"
            "  fix: model.safetensors.index.json, or a file of torch.save or safetensors"
        )
    named = cast("dict[str, object]", found)
    folder = source.path.parent
    shards: dict[str, Path] = {}
    for name in named.values():
        if not isinstance(name, str) or not is_plain_name(name):
            raise CorruptCheckpoint(
                f"the index {shown(source.path)} names a shard that is not a file beside it\n"
                f"  found: {shown(str(name))[:200]}\n  fix: names of files without folders"
            )
        shards[name] = folder / name
    check_there(source.path, list(shards.values()))
    assigned = {tensor: shards[cast("str", shard)] for tensor, shard in named.items()}
    return ShardSet(source.path, tuple(shards.values()), assigned, source.path)


def join_shards(shards: ShardSet, read: Callable[[Path], Contents]) -> Contents:
    """Read every shard, and put their tensors together.

    Args:
        shards: which files.
        read: opens one.

    Returns:
        All tensors: in the order of the index, or of the shards.

    Raises:
        CorruptCheckpoint: a tensor is in two shards, or not in the one that the index names, or in one that the index
            does not name.
    """
    tensors: dict[str, StoredTensor] = {}
    owner: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    versions: dict[str, Any] = {}
    kinds: set[str] = set()
    for shard in shards.shards:
        contents = read(shard)
        kinds.add(contents.format)
        metadata |= contents.metadata
        versions |= contents.versions.get("", {})
        for name, value in _tensors(shard, contents).items():
            if name in owner:
                raise CorruptCheckpoint(
                    f"{shown(shards.path)}: the tensor {shown(name)} is in two shards\n"
                    f"  found: {owner[name].name}, {shard.name}\n  fix: save the checkpoint again"
                )
            tensors[name], owner[name] = value, shard
    if shards.index is not None:
        _compare(shards, owner)
        tensors = {name: tensors[name] for name in shards.assigned}
    kind = f"sharded {kinds.pop()}" if len(kinds) == 1 else "sharded"
    files = shards.shards if shards.index is None else (shards.index, *shards.shards)
    return Contents(kind, tensors, files, metadata, {"": versions} if versions else {}, shards=len(shards.shards))


def missing(where: Path, shards: list[Path], of: int) -> CheckpointError:
    """The error for shards that are not there."""
    listed = [f"{each.name} ({absence(each)})" for each in shards]
    return CheckpointError(
        f"the checkpoint {shown(where)} is not whole: {len(shards)} of {of} shards cannot be found\n"
        f"  missing: {name_some(listed, most=100)}\n  fix: copy or download them too"
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name twice")
    return entries


def is_plain_name(name: str) -> bool:
    """Whether a name is that of a file beside the index, on any system."""
    return bool(name) and name not in {".", ".."} and not set(name) & set("/\\:\0")


def check_there(index: Path, shards: list[Path]) -> None:
    """See that shards are files.

    Raises:
        CheckpointError: one is none, or is not there; all that are not are named.
    """
    absent: list[Path] = []
    for shard in shards:
        try:
            seen = look_at(shard)
        except CheckpointError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            absent.append(shard)
            continue
        if not stat.S_ISREG(seen.st_mode):
            raise irregular(shard, seen)
    if absent:
        raise missing(index, absent, of=len(shards))


def _tensors(shard: Path, contents: Contents) -> dict[str, StoredTensor]:
    root = contents.root
    entries = cast("dict[object, object]", root) if isinstance(root, dict) else {}
    plain = {name for name, value in entries.items() if type(name) is str and isinstance(value, StoredTensor)}
    others = [str(name) for name in entries if name not in plain]
    if not isinstance(root, dict) or others:
        raise CorruptCheckpoint(
            f"the shard {shown(shard)} holds something other than tensors under their names\n"
            f"  found: {name_some(others) or type(root).__name__}\n  fix: the shards that the index was made with"
        )
    return cast("dict[str, StoredTensor]", entries)


def _compare(shards: ShardSet, owner: Mapping[str, Path]) -> None:
    lost = [name for name, shard in shards.assigned.items() if owner.get(name) != shard]
    extra = [name for name in owner if name not in shards.assigned]
    if lost or extra:
        found = f"not where the index says: {name_some(lost)}" if lost else f"not in the index: {name_some(extra)}"
        raise CorruptCheckpoint(
            f"the shards of {shown(shards.path)} do not hold what their index says\n"
            f"  {found}\n  fix: copy or download the index and all of its shards again"
        )
