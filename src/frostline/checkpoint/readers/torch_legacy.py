"""Torch's older files: five pickles one after another, and then the bytes of each storage behind their count.

Where a storage begins follows from the lengths of those before it, so that only their counts are read.

Source: pytorch, ``torch/serialization.py`` (``_legacy_save``, ``_legacy_load``).
"""

from __future__ import annotations

import io
from typing import Any, cast

from frostline.checkpoint.readers.contents import Contents
from frostline.checkpoint.readers.pickle_data import BadPickle, read_pickle
from frostline.checkpoint.readers.pickle_names import Damaged, Names, Opaque
from frostline.checkpoint.readers.refusals import cut_short
from frostline.checkpoint.readers.source import Extent, SourceFile
from frostline.checkpoint.readers.torch_objects import Storage, TorchNames, count_storage
from frostline.checkpoint.readers.torch_root import finish

# What torch pickles first, and then its version of the format.
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_COUNT = 8
# The pickles have no length: so many bytes are read, and eight times as many where they end too early.
_FIRST = 2**16
_GROWTH = 8
_LONGEST = 2**30
# Elements of all collections that a pickle makes out of others.
_LONGEST_COPIES = 2**26
# An instruction is noticed to be cut off at most so many bytes before its end.
_INSTRUCTION = 16


class _Run(Extent):
    """The bytes of a storage, whose beginning is known once the storages before it have been counted.

    Attributes:
        itemsize: bytes of an element.
        found: whether the beginning is known.
    """

    def __init__(self, source: SourceFile, name: str, numel: int, itemsize: int) -> None:
        super().__init__(source, name, 0, numel * itemsize)
        self.itemsize = itemsize
        self.found = False

    def lay(self, start: int) -> None:
        self._start = start
        self.found = True


def is_torch_legacy(head: bytes) -> bool:
    """Tell whether a file begins as these do."""
    try:
        return read_pickle(head, Names({}, len(head)), _no_id)[0] == MAGIC
    except BadPickle:
        return False


def read_torch_legacy(source: SourceFile, *, allow_pickle: bool = False) -> Contents:
    """Read names, dtypes and shapes; the tensors are read when they are asked for.

    Args:
        source: the file.
        allow_pickle: run the code that its pickle names, if it names any.

    Returns:
        What its pickle holds.

    Raises:
        CorruptCheckpoint: a pickle, or the length of the file, is wrong.
        UnsafeCheckpoint: it wants to run code.
    """
    with source.open() as file:
        length = _FIRST
        keys: object = None
        end = 0
        while True:
            program = source.read(file, 0, length)
            names, runs = TorchNames(min(source.size, _LONGEST_COPIES)), dict[str, _Run]()
            try:
                root, keys, end = _read_pickles(source, program, names, runs)
                break
            except BadPickle as error:
                more = length < min(source.size, _LONGEST) and error.position >= len(program) - _INSTRUCTION
                if not more:
                    root = error
                    break
                length *= _GROWTH
        if not (names.wanted or isinstance(root, BadPickle)):
            _lay(source, file, keys, runs, end)
    return finish("torch legacy", source, root, names, allow_pickle=allow_pickle)


def _read_pickles(
    source: SourceFile, program: bytes, names: TorchNames, runs: dict[str, _Run]
) -> tuple[object, object, int]:
    """The object, the keys of its storages, and where the bytes of the storages begin."""
    views: dict[object, tuple[object, ...]] = {}

    def persistent(found: object) -> object:
        parts = cast("tuple[Any, ...]", found) if type(found) is tuple else ()
        what = _text(parts[0]) if parts else None
        if what == "module" and len(parts) == 4:
            # A class with its source; the class is a name in the pickle, and has been noted.
            return parts[1]
        if what != "storage" or len(parts) != 6:
            raise Damaged("a persistent id that is none of torch")
        kind, numel = count_storage(parts[1], parts[4])
        key = _text(parts[2])
        itemsize = kind.dtype.itemsize
        run = runs.get(key)
        if run is None:
            run = runs[key] = _Run(source, key, numel, itemsize)
        view = parts[5]
        start, count = 0, numel
        if view is not None:
            if type(view) is not tuple or len(cast("tuple[Any, ...]", view)) != 3:
                raise Damaged("a view of a storage that is none")
            view_key, start, count = cast("tuple[Any, int, int]", view)
            if type(start) is not int or type(count) is not int or start < 0 or count < 0:
                raise Damaged("a view of a storage that is none")
            if views.setdefault(_text(view_key), (key, start, count)) != (key, start, count):
                raise Damaged("two views of one name")
        if (start + count) * itemsize > run.length:
            raise Damaged(f"a storage of {run.length:,} bytes for {start + count:,} elements of {kind.dtype}")
        return Storage(kind.name, kind.dtype, count, run, (str(source.path), key), start * itemsize)

    values: list[Any] = []
    end = 0
    # Magic number, version, sizes of numbers, the object, keys of its storages.
    for identify in (_no_id, _no_id, _no_id, persistent, _no_id):
        value, end = read_pickle(program, names, identify, end)
        values.append(value)
        if len(values) == 2 and values != [MAGIC, PROTOCOL]:
            raise BadPickle("a version of the format that torch never had", end)
    return values[3], values[4], end


def _lay(source: SourceFile, file: io.RawIOBase, keys: object, runs: dict[str, _Run], position: int) -> None:
    """Find where each storage begins."""
    if type(keys) is not list:
        raise cut_short(source.path, source.size, "no list of storages")
    for key in cast("list[object]", keys):
        run = runs.get(_text(key)) if isinstance(key, (str, bytes)) else None
        if run is None or run.found:
            raise cut_short(source.path, source.size, "a storage that no tensor has, or two of one name")
        count = source.read(file, position, _COUNT)
        numel = int.from_bytes(count, "little", signed=True)
        if len(count) < _COUNT or numel * run.itemsize != run.length:
            raise cut_short(
                source.path, source.size, f"a storage {run.name} of another length than the {run.length:,} bytes it has"
            )
        run.lay(position + _COUNT)
        position += _COUNT + run.length
        if position > source.size:
            raise cut_short(source.path, source.size, f"a storage {run.name} that ends at byte {position:,}")
    lost = [run.name for run in runs.values() if not run.found]
    if lost:
        raise cut_short(source.path, source.size, f"no bytes for the storage {lost[0]}")


def _text(value: object) -> str:
    """A text that Python 2 may have written as bytes."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if not isinstance(value, str):
        raise Damaged("a name of a storage that is no text")
    return value


def _no_id(_: object) -> Opaque:
    raise Damaged("a persistent id where none can be")
