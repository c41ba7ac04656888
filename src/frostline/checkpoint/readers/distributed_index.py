"""The index of a folder of ``torch.distributed.checkpoint``: its file ``.metadata``, a pickle, read as data.

Torch unpickles that file, which runs whatever code it names. Here exactly the dataclasses that torch writes into it
are known, as records of their fields; a name beside them is refused.

Source: pytorch, ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py`` (``_StorageInfo``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch

from frostline.checkpoint.readers.file_tensor import MOST_DIMENSIONS, Misfit, check_shape
from frostline.checkpoint.readers.pickle_data import BadPickle, read_pickle
from frostline.checkpoint.readers.pickle_names import Damaged, Opaque, Record
from frostline.checkpoint.readers.refusals import cut_short, shown, unsafe
from frostline.checkpoint.readers.sharded import is_plain_name
from frostline.checkpoint.readers.source import SourceFile
from frostline.checkpoint.readers.torch_objects import TorchNames
from frostline.errors import CheckpointError, CorruptCheckpoint

_METADATA = "torch.distributed.checkpoint.metadata."
_TENSOR, _BYTES = "TensorStorageMetadata", "BytesStorageMetadata"
_TYPES = (
    *(
        _METADATA + name
        for name in (
            *("Metadata", "StorageMeta", "MetadataIndex", "TensorProperties", "ChunkStorageMetadata"),
            *(_TENSOR, _BYTES, "_MEM_FORMAT_ENCODING"),
        )
    ),
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    # Where they were before torch 2.3.
    "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
    "torch.distributed._shard.metadata.ShardMetadata",
)
# Torch counts elements, and so offsets of shards, in 64 bits.
_LONGEST_INDEX = 2**32


@dataclass(frozen=True)
class Place:
    """Where the bytes of a shard, or of a value that is no tensor, are.

    Attributes:
        file: the name of a file beside the index.
        offset: where in it they begin.
        length: how many they are.
    """

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """A shard of a tensor: a box of its elements.

    Attributes:
        offsets: where the box begins, in each dimension.
        sizes: its shape.
        place: where its values are.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class IndexedTensor:
    """A tensor by the index.

    Attributes:
        shape: of the whole tensor.
        dtype: of its elements.
        chunks: its shards.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Index:
    """What the index says.

    Attributes:
        entries: the flat name of each entry to its tensor, or to the place of what is no tensor.
        paths: flat name to the keys that led to the entry in the nest of dictionaries and lists that was saved.
    """

    entries: Mapping[str, IndexedTensor | Place]
    paths: Mapping[str, tuple[str | int, ...]]


class _IndexNames(TorchNames):
    def __init__(self, budget: int) -> None:
        super().__init__(budget)
        self._known |= {name: partial(Record, name) for name in _TYPES}


def read_distributed_index(source: SourceFile) -> Index:
    """Read the index; of the files beside it, none is opened.

    Args:
        source: the file ``.metadata``.

    Returns:
        All entries, in the order in which they were saved.

    Raises:
        CorruptCheckpoint: it is cut short or damaged, or names files outside of its folder.
        UnsafeCheckpoint: it wants to run code.
        CheckpointError: it describes what this reader does not know: shards that were compressed, for example.
    """
    if not source.size or source.size > _LONGEST_INDEX:
        raise cut_short(source.path, source.size, "an index of no size that one can have")
    with source.open() as file:
        program = source.read(file, 0, source.size)
    names = _IndexNames(len(program))
    error: BadPickle | None = None
    root: Any = None
    try:
        root, _ = read_pickle(program, names, _no_id)
    except BadPickle as raised:
        error = raised
    if names.wanted:
        raise unsafe(source.path, sorted(names.wanted), of_torch=False) from error
    if error is not None:
        raise cut_short(source.path, source.size, str(error)) from error
    try:
        return _index(source, root)
    except (Damaged, Misfit) as damage:
        raise cut_short(source.path, source.size, str(damage)) from damage


def _no_id(_: object) -> object:
    raise Damaged("a persistent id, in a pickle that has no storages")


def _index(source: SourceFile, root: object) -> Index:
    fields = _fields(root, "Metadata")
    described = _mapping(fields.get("state_dict_metadata"), "entries")
    places = {_key(key): info for key, info in _mapping(fields.get("storage_data"), "places of entries").items()}
    paths = _paths(fields.get("planner_data"))
    entries: dict[str, IndexedTensor | Place] = {}
    # The keys that led to the entries are in the order of what was saved; the entries, as they came from the ranks.
    for name in dict.fromkeys([*(name for name in paths if name in described), *described]):
        if type(name) is not str:
            raise Damaged("a name that is no text")
        value = described[name]
        if isinstance(value, Record) and value.name.endswith(f".{_BYTES}"):
            entries[name] = _place(source, name, places.get((name, None)))
        else:
            entries[name] = _tensor(source, name, _fields(value, _TENSOR), places)
    return Index(entries, {name: path for name, path in paths.items() if name in entries})


def _tensor(
    source: SourceFile,
    name: str,
    fields: Mapping[str, Any],
    places: Mapping[tuple[str, tuple[int, ...] | None], object],
) -> IndexedTensor:
    shape = _sizes(fields.get("size"), name)
    chunks: list[Chunk] = []
    found = fields.get("chunks")
    if not isinstance(found, list):
        raise Damaged(f"a tensor without a list of shards: {name}")
    for each in cast("list[object]", found):
        chunk = _fields(each, "ChunkStorageMetadata", "ShardMetadata")
        offsets = _sizes(chunk.get("offsets", chunk.get("shard_offsets")), name)
        sizes = _sizes(chunk.get("sizes", chunk.get("shard_sizes")), name)
        if 0 in sizes:
            continue  # of more processes than rows, some have none
        chunks.append(Chunk(offsets, sizes, _place(source, name, places.get((name, offsets)), offsets)))
    return IndexedTensor(shape, _dtype(fields.get("properties"), name), tuple(chunks))


def _dtype(properties: object, name: str) -> torch.dtype:
    state = properties.state if isinstance(properties, Record) else None
    if isinstance(state, tuple) and state:
        found: object = cast("tuple[object, ...]", state)[0]
    else:
        found = cast("dict[str, object]", state).get("dtype") if isinstance(state, dict) else None
    if not isinstance(found, torch.dtype):
        raise Damaged(f"a dtype that is none, of {name}")
    return found


def _place(source: SourceFile, name: str, found: object, offsets: tuple[int, ...] | None = None) -> Place:
    which = name if not offsets else f"{name} at {list(offsets)}"
    if found is None:
        raise Damaged(f"no place for {which}, which should be in a file")
    fields = _fields(found, "_StorageInfo")
    file, offset, length = fields.get("relative_path"), fields.get("offset"), fields.get("length")
    if type(file) is not str or not is_plain_name(file):
        raise CorruptCheckpoint(
            f"the index {shown(source.path)} names a file that is not beside it\n"
            f"  found: {shown(str(file))[:200]}, for {shown(which)}\n  fix: names of files without folders"
        )
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
        raise Damaged(f"a place that is none, for {which}")
    transforms = fields.get("transform_descriptors")
    if transforms:
        raise CheckpointError(
            f"{shown(source.path.parent)}: its files were transformed while they were written\n"
            f"  found: {shown(str(transforms))[:200]}, for {shown(which)}\n"
            "  fix: save it without extensions of the storage writer"
        )
    return Place(file, offset, length)


def _key(key: object) -> tuple[str, tuple[int, ...] | None]:
    fields = _fields(key, "MetadataIndex")
    name, offset = fields.get("fqn"), fields.get("offset")
    if type(name) is not str:
        raise Damaged("a name that is no text")
    return name, None if offset is None else _sizes(offset, name)


def _paths(found: object) -> dict[str, tuple[str | int, ...]]:
    """The keys of each entry; nothing where the state dict was saved as flat as it was."""
    if found is None:
        return {}
    paths: dict[str, tuple[str | int, ...]] = {}
    for name, path in _mapping(found, "keys of entries").items():
        keys = cast("tuple[object, ...]", path)
        if type(name) is not str or type(path) is not tuple or not all(type(key) in (str, int) for key in keys):
            raise Damaged("keys of an entry that are none")
        paths[name] = cast("tuple[str | int, ...]", keys)
    return paths


def _fields(value: object, *names: str) -> Mapping[str, Any]:
    """The fields of a record of one of these types."""
    if not isinstance(value, Record) or value.name.rpartition(".")[2] not in names:
        found = value.name if isinstance(value, (Record, Opaque)) else type(value).__name__
        raise Damaged(f"a {found} where a {names[0]} should be")
    state = value.state
    if state is None and names[0] == _BYTES:
        return {}
    if not isinstance(state, dict):
        raise Damaged(f"a {names[0]} without fields")
    return cast("Mapping[str, Any]", state)


def _mapping(value: object, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise Damaged(f"no {what}")
    return cast("Mapping[Any, Any]", value)


def _sizes(value: object, name: str) -> tuple[int, ...]:
    if not isinstance(value, tuple):  # `torch.Size` is one
        raise Damaged(f"a shape or an offset that is none, of {name}")
    check_shape(value)
    if len(cast("tuple[int, ...]", value)) > MOST_DIMENSIONS:
        raise Damaged(f"more than {MOST_DIMENSIONS} dimensions, of {name}")
    return tuple(cast("tuple[int, ...]", value))
