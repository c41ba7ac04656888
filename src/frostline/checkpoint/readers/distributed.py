"""Folders of ``torch.distributed.checkpoint``: an index, and files of shards that the processes wrote.

Opened by one process, without a process group: the index says what there is, and a shard is opened when its tensor is
read. A shard is what ``torch.save`` writes of a tensor, or a tensor of a safetensors file; many stand in one file.

Source: pytorch, ``torch/distributed/checkpoint/filesystem.py`` (``_write_files_from_queue``, ``FileSystemReader``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from frostline.checkpoint.readers.contents import Contents
from frostline.checkpoint.readers.distributed_index import (
    Chunk,
    Index,
    IndexedTensor,
    Place,
    read_distributed_index,
)
from frostline.checkpoint.readers.distributed_tensor import Shard, ShardedTensor, check_cover
from frostline.checkpoint.readers.file_tensor import Misfit
from frostline.checkpoint.readers.pickle_names import Damaged, Opaque
from frostline.checkpoint.readers.refusals import cut_short, shown
from frostline.checkpoint.readers.safetensors_file import read_safetensors
from frostline.checkpoint.readers.sharded import check_there
from frostline.checkpoint.readers.source import SourceFile
from frostline.checkpoint.readers.source_part import SourcePart
from frostline.checkpoint.readers.torch_root import DEEPEST
from frostline.checkpoint.readers.torch_zip import ZIP_MAGIC, read_torch_zip
from frostline.checkpoint.stored import StoredTensor
from frostline.errors import CheckpointError

INDEX_FILE = ".metadata"
SHARD_SUFFIX = ".distcp"
FORMAT = "torch.distributed.checkpoint"
# Texts of ours among what is no tensor: what the header of a safetensors file carries elsewhere.
OWN = "frostline."
NO_TENSOR = "what is no tensor"
_LONGEST_TEXT = 2**28


def read_distributed(folder: Path) -> Contents:
    """Read names, dtypes and shapes of a folder; no shard is opened, and nothing of it is run.

    What is no tensor stays closed: it is a pickle each, and stands as an inert stand-in under its name.

    Args:
        folder: holds ``.metadata`` and the files that it names.

    Returns:
        The nest of dictionaries that was saved, in which a list is a dictionary of its positions.

    Raises:
        CorruptCheckpoint: the index or a file is cut short or damaged, or shards leave a hole or overlap.
        UnsafeCheckpoint: the index wants to run code.
        CheckpointError: files are missing, which are named, or were written in a way that is not known.
    """
    source = SourceFile(folder / INDEX_FILE)
    index = read_distributed_index(source)
    files = _files(folder, index)
    root: dict[str | int, Any] = {}
    metadata: dict[str, str] = {}
    closed = False
    for name, entry in index.entries.items():
        if isinstance(entry, Place):
            if name.startswith(OWN) and entry.length <= _LONGEST_TEXT:
                text = read_torch_zip(_part(files, entry, name)).root
                if isinstance(text, str):
                    metadata[name] = text
                    continue
            closed, value = True, Opaque(NO_TENSOR)
        else:
            value = _tensor(source, files, name, entry)
        try:
            _put(root, index.paths.get(name, (name,)), value)
        except Damaged as error:
            raise cut_short(source.path, source.size, f"{error}, at {name}") from error
    opaque = (NO_TENSOR,) if closed else ()
    paths = (source.path, *(each.path for each in files.values()))
    return Contents(FORMAT, root, paths, metadata, {}, opaque, shards=len(files))


def _files(folder: Path, index: Index) -> dict[str, SourceFile]:
    """The files that the index names, if all are there and as long as it says."""
    ends: dict[str, tuple[int, str]] = {}
    for name, entry in index.entries.items():
        for place in (entry,) if isinstance(entry, Place) else (chunk.place for chunk in entry.chunks):
            ends[place.file] = max(ends.get(place.file, (0, "")), (place.offset + place.length, name))
    check_there(folder, [folder / name for name in sorted(ends)])
    files: dict[str, SourceFile] = {}
    for file in sorted(ends):
        files[file] = source = SourceFile(folder / file)
        end, name = ends[file]
        if end > source.size:
            raise cut_short(source.path, source.size, f"the end of {name} should be at byte {end:,}")
    return files


def _tensor(source: SourceFile, files: Mapping[str, SourceFile], name: str, entry: IndexedTensor) -> ShardedTensor:
    chunks = sorted(entry.chunks, key=lambda chunk: chunk.offsets)
    try:
        check_cover(entry.shape, [(chunk.offsets, chunk.sizes) for chunk in chunks])
    except Misfit as error:
        raise cut_short(source.path, source.size, f"{error}, of {name}") from error
    for chunk in chunks:
        needed = torch.Size(chunk.sizes).numel() * entry.dtype.itemsize
        if chunk.place.length < needed:
            found = f"{chunk.place.length:,} bytes for a shard of {needed:,}, of {name}"
            raise cut_short(source.path, source.size, found)
    shards = [Shard(chunk.offsets, chunk.sizes, partial(_open, files, name, entry.dtype, chunk)) for chunk in chunks]
    return ShardedTensor(entry.shape, entry.dtype, (str(source.path), name), tuple(shards), source.path.parent)


def _open(files: Mapping[str, SourceFile], name: str, dtype: torch.dtype, chunk: Chunk) -> StoredTensor:
    """The values of a shard.

    Raises:
        CorruptCheckpoint: they are not what the index says, or cannot be read.
        UnsafeCheckpoint: they are a pickle that wants to run code.
    """
    place = chunk.place
    part = _part(files, place, name)
    with part.open() as file:
        head = part.read(file, 0, len(ZIP_MAGIC))
    if head == ZIP_MAGIC:
        found = read_torch_zip(part).root
    else:  # of safetensors each process writes one file, and the offset of all tensors is where that begins
        whole = files[place.file]
        begin = _part(files, Place(place.file, place.offset, whole.size - place.offset), name)
        found = cast("Mapping[str, object]", read_safetensors(begin).root).get(name)
    if not isinstance(found, StoredTensor) or (found.shape, found.dtype) != (chunk.sizes, dtype):
        what = f"{tuple(found.shape)} and {found.dtype}" if isinstance(found, StoredTensor) else "no tensor"
        said = f"{what} for a shard of shape {chunk.sizes} and {dtype}, of {name} at byte {place.offset:,}"
        raise cut_short(part.path, files[place.file].size, said)
    return found


def _part(files: Mapping[str, SourceFile], place: Place, name: str) -> SourcePart:
    if not place.length:
        raise cut_short(files[place.file].path, files[place.file].size, f"no bytes for {name}")
    return SourcePart(files[place.file], place.offset, place.length)


def _put(root: dict[str | int, Any], path: tuple[str | int, ...], value: object) -> None:
    """Put a value under its keys, making dictionaries on the way."""
    if not path or len(path) > DEEPEST:
        raise Damaged("keys of an entry that are none")
    inner = root
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
        if type(inner) is not dict:
            raise Damaged("an entry inside of one that is no container")
    if path[-1] in inner:
        raise Damaged("two entries of the same keys")
    inner[path[-1]] = value


def refuse_shard(path: Path) -> CheckpointError:
    """The error for one of the files of shards, which says nothing without its index."""
    return CheckpointError(
        f"{shown(path)} holds shards of {FORMAT}, and the index of them is beside it\n"
        f"  fix: its folder, {shown(path.parent)}"
    )
