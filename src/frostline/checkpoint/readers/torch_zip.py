"""Torch's zip files: a pickle, and a record of bytes for each storage, stored as they are.

A record is found through the directory at the end of the file, and its bytes behind a header of its own, which is
looked at when the record is first read: opening a file reads its directory and its pickle, and nothing else.

Source: pytorch, ``torch/serialization.py`` (``_save``) and ``caffe2/serialize/inline_container.cc``.
"""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

from frostline.checkpoint.readers.contents import Contents
from frostline.checkpoint.readers.pickle_data import BadPickle, read_pickle
from frostline.checkpoint.readers.pickle_names import Damaged
from frostline.checkpoint.readers.refusals import cut_short, reason, shown
from frostline.checkpoint.readers.source import Extent, SourceFile
from frostline.checkpoint.readers.torch_objects import Storage, TorchNames, count_storage
from frostline.checkpoint.readers.torch_root import finish
from frostline.errors import CorruptCheckpoint, FrostlineError, UnsafeCheckpoint, name_some

ZIP_MAGIC = b"PK\x03\x04"
PICKLE = "/data.pkl"
_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 0x1
_BAD_ZIP = (
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    ValueError,
)


class _Record(Extent):
    """A record of an archive, whose bytes begin behind a header in the file."""

    def __init__(self, source: SourceFile, info: zipfile.ZipInfo, limit: int) -> None:
        super().__init__(source, info.filename, 0, info.file_size, info.CRC)
        self._header = info.header_offset
        self._limit = limit

    def begin(self, file: io.RawIOBase) -> int:
        if not self._start:
            head = self.source.read(file, self._header, _HEADER.size)
            if len(head) < _HEADER.size or not head.startswith(ZIP_MAGIC):
                raise cut_short(self.source.path, self.source.size, f"no record {self.name} where it should be")
            _, name, padding = _HEADER.unpack(head)
            start = self._header + _HEADER.size + name + padding
            if start + self.length > self._limit:
                raise cut_short(self.source.path, self.source.size, f"a record {self.name} that reaches into the next")
            self._start = start
        return self._start


def read_torch_zip(source: SourceFile, *, allow_pickle: bool = False) -> Contents:
    """Read names, dtypes and shapes; the tensors are read when they are asked for.

    Args:
        source: the file.
        allow_pickle: run the code that its pickle names, if it names any.

    Returns:
        What its pickle holds.

    Raises:
        CorruptCheckpoint: the archive, the pickle, or a tensor in it is damaged.
        UnsafeCheckpoint: it wants to run code.
    """
    records = _records(source)
    pickled = [name for name in records if name.endswith(PICKLE)]
    if len(pickled) > 1:
        raise cut_short(source.path, source.size, f"more than one pickle: {name_some(pickled)}")
    folder = pickled[0].removesuffix("data.pkl")
    order = records.get(f"{folder}byteorder")
    if order is not None and order.take(0, min(order.length, 16)) != b"little":
        raise cut_short(
            source.path,
            source.size,
            "numbers whose bytes are in another order than little-endian",
            fix="fix: load and save it on a machine like the one that wrote it",
        )
    program = records[pickled[0]].take(0, records[pickled[0]].length)
    names = TorchNames(len(program))
    path = str(source.path)
    storages: dict[str, Storage] = {}

    def persistent(found: Any) -> Storage:
        if type(found) is not tuple or len(found) != 5:
            raise Damaged("a persistent id that is none of torch")
        what, kind, key, _location, count = found
        known = storages.get(key) if type(key) is str else None
        if known is not None and known.name == getattr(kind, "name", None) and known.numel == count:
            return known
        if what != "storage" or type(key) is not str:
            raise Damaged("a persistent id that is none of torch")
        kind, numel = count_storage(kind, count)
        record = records.get(f"{folder}data/{key}")
        if record is None:
            raise Damaged(f"no record data/{key}")
        if numel * kind.dtype.itemsize > record.length:
            raise Damaged(f"{record.length:,} bytes in the record data/{key}, for {numel:,} elements of {kind.dtype}")
        storages[key] = Storage(kind.name, kind.dtype, numel, record, (path, key))
        return storages[key]

    try:
        root, _ = read_pickle(program, names, persistent)
    except BadPickle as error:
        root = error
    if allow_pickle if names.wanted else names.rare:  # torch will read all of it, and compares no checksums
        for record in records.values():
            record.check()
    return finish("torch", source, root, names, allow_pickle=allow_pickle)


def _records(source: SourceFile) -> dict[str, _Record]:
    """The records of the archive, if they lie in the file one after another, each of them once, and as they are."""
    try:
        with source.open() as file, zipfile.ZipFile(file) as archive:
            infos, end = archive.infolist(), archive.start_dir
    except FrostlineError:
        raise
    except _BAD_ZIP as error:
        raise cut_short(source.path, source.size, reason(error)) from error
    names = [info.filename for info in infos]
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        raise UnsafeCheckpoint(
            f"{shown(source.path)} is a TorchScript archive: a program, not a checkpoint\n"
            "  fix: run torch.jit.load on it in a place you trust, and save its state_dict()"
        )
    if not any(name.endswith(PICKLE) for name in names):
        raise CorruptCheckpoint(
            f"{shown(source.path)} is a zip archive, but no checkpoint of torch: it holds no data.pkl\n"
            f"  found: {name_some(names) or 'nothing'}\n  fix: the file that torch.save wrote"
        )
    records: dict[str, _Record] = {}
    limit = end
    for info in sorted(infos, key=lambda info: info.header_offset, reverse=True):
        name = info.filename
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
            raise cut_short(
                source.path,
                source.size,
                f"a record that is compressed or encrypted: {name}",
                fix="fix: the file that torch.save wrote, which stores records as they are",
            )
        if name in records:
            raise cut_short(source.path, source.size, f"two records of the name {name}")
        # The header and the name are at least so long; padding behind them is seen when the record is read.
        least = _HEADER.size + len(name)
        if info.header_offset < 0 or info.header_offset + least + info.compress_size > limit:
            raise cut_short(source.path, source.size, f"a record that overlaps with the next or the end: {name}")
        if info.compress_size != info.file_size:
            raise cut_short(source.path, source.size, f"a record of two lengths: {name}")
        records[name] = _Record(source, info, limit)
        limit = info.header_offset
    return dict(reversed(records.items()))
