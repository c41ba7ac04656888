"""Tensors out of files: safetensors, torch's zip files and torch's older pickles.

Knows bytes and formats; knows nothing of models. No file is ever allowed to run code: what wants to is refused, and
what it wanted to import is listed.
"""

from __future__ import annotations

import os
import re
import struct
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from frostline.checkpoint.container import FLAT_SHARD, strip_wrappers, unwrap
from frostline.checkpoint.pickle_globals import is_pickle, suspicious_globals
from frostline.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint, name_some

ZIP_MAGIC = b"PK\x03\x04"
# 0x1950a86a20f9469cfc6c, which torch pickles first: LONG1 of ten bytes, behind two bytes for the protocol.
LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
# Magic number, protocol version, sizes of numbers, the object, keys of its storages.
LEGACY_PICKLES = 5
# The format allows no longer header.
LONGEST_HEADER = 100_000_000
AGAIN = "fix: copy or download it again"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        path: the file.
        format: ``safetensors``, ``torch`` (zip) or ``torch legacy``.
        tensors: tensors on the CPU under their names, without wrappers.
        container: the keys that led to them, outermost first.
        stripped: the wrapper names that were taken out of the names.
        prefix: what every name began with, where that beginning is all that was taken out; otherwise empty.
        beside: names in the same dictionary whose values are no tensors.
    """

    path: Path
    format: str
    tensors: dict[str, Tensor]
    container: tuple[str, ...]
    stripped: tuple[str, ...]
    prefix: str
    beside: tuple[str, ...]


def read_tensors(path: str | os.PathLike[str], *, keep: Collection[str] = ()) -> Checkpoint:
    """Read the tensors of a file on the CPU, whatever device they were saved on, and run none of its code.

    The format is told by the content, not by the name. Containers such as ``state_dict`` are unwrapped and wrapper
    names such as ``module`` taken out; the result says which. The file is only read.

    Args:
        path: the file.
        keep: wrapper names that stay, because they are names of the model itself.

    Returns:
        The tensors, and what was unwrapped.

    Raises:
        CorruptCheckpoint: the file is empty, cut short, damaged, or no checkpoint.
        UnsafeCheckpoint: it is a pickle or a program that wants to run code.
        CheckpointError: it does not exist, or holds no tensors, or tensors in several places.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"module.fc.weight": torch.ones(2)}, "epoch": 3}, f"{folder}/a.pth")
        ...     read = read_tensors(f"{folder}/a.pth")
        >>> read.tensors, read.container, read.prefix
        ({'fc.weight': tensor([1., 1.])}, ('state_dict',), 'module.')
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"the checkpoint {path} {what}\n  fix: the path of a checkpoint file")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    if not head:
        raise CorruptCheckpoint(f"the checkpoint {path} is empty (0 bytes)\n  {AGAIN}")

    if head.startswith(ZIP_MAGIC):
        kind, loaded = "torch", _load_zip(path)
    elif head[2 : 2 + len(LEGACY_MAGIC)] == LEGACY_MAGIC:
        with path.open("rb") as file:
            kind, loaded = "torch legacy", _load_torch(path, file, LEGACY_PICKLES)
    elif _looks_like_safetensors(path, head):
        kind, loaded = "safetensors", _load_safetensors(path)
    else:
        raise _no_checkpoint(path, head)
    # Safetensors have no containers: a tensor of a name such as "ema" is just that.
    entries, container = unwrap(loaded, str(path)) if kind != "safetensors" else (loaded, ())
    return _arrange(path, kind, entries, container, keep)


def _arrange(path: Path, kind: str, entries: object, container: tuple[str, ...], keep: Collection[str]) -> Checkpoint:
    assert isinstance(entries, Mapping), "unwrap gives a mapping, and so does safetensors"
    named: dict[str, Tensor] = {}
    beside: list[str] = []
    for name, value in entries.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            named[name] = value.detach()
        else:
            beside.append(str(name))
    flat = [name for name in named if FLAT_SHARD in name.split(".")]
    if flat:
        raise CheckpointError(
            f"{path} holds flat shards of FSDP, which are no tensors of a model: {name_some(flat)}\n"
            "  fix: save it with StateDictType.FULL_STATE_DICT, or with torch.distributed.checkpoint"
        )
    tensors, stripped = strip_wrappers(named, keep=keep)
    pairs = zip(named, tensors, strict=True)
    beginnings = {old.removesuffix(new) if old.endswith(new) else "" for old, new in pairs}
    return Checkpoint(
        path=path,
        format=kind,
        tensors=tensors,
        container=container,
        stripped=tuple(stripped),
        prefix=beginnings.pop() if len(beginnings) == 1 else "",
        beside=tuple(beside),
    )


def _looks_like_safetensors(path: Path, head: bytes) -> bool:
    if path.suffix == ".safetensors":
        return True
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and length <= LONGEST_HEADER and head[8:9] == b"{"


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptCheckpoint(
            f"the checkpoint {path} is cut short or no safetensors file ({path.stat().st_size:,} bytes)\n"
            f"  found: {_reason(error)}\n  {AGAIN}"
        ) from error


def _load_zip(path: Path) -> object:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
                raise UnsafeCheckpoint(
                    f"{path} is a TorchScript archive: a program, not a checkpoint\n"
                    "  fix: run torch.jit.load on it in a place you trust, and save its state_dict()"
                )
            pickled = next((record for record in archive.infolist() if record.filename.endswith("/data.pkl")), None)
            if pickled is None:
                raise CorruptCheckpoint(
                    f"{path} is a zip archive, but no checkpoint of torch: it holds no data.pkl\n"
                    f"  found: {name_some(names) or 'nothing'}\n  fix: the file that torch.save wrote"
                )
            # Torch compares no checksums, and would load a flipped bit. Zero stands for a sum that was not taken.
            summed = [record for record in archive.infolist() if record.CRC]
            damaged = [record.filename for record in summed if not _intact(archive, record)]
            if damaged:
                raise CorruptCheckpoint(
                    f"the checkpoint {path} is damaged: {len(damaged)} of {len(names)} records do not match their "
                    f"checksums\n  found: {name_some(damaged)}\n  {AGAIN}"
                )
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise CorruptCheckpoint(
            f"the checkpoint {path} is cut short or damaged ({path.stat().st_size:,} bytes)\n"
            f"  found: {_reason(error)}\n  {AGAIN}"
        ) from error
    with path.open("rb") as file:
        # Torch stores records as they are: the pickle lies behind its local header, whose last fields are the lengths
        # of a name and of padding.
        file.seek(pickled.header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        return _load_torch(path, file, 1)


def _intact(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(record) as content:
            while content.read(2**20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _load_torch(path: Path, program: IO[bytes], pickles: int) -> object:
    """Load with torch's safe reader; ``program`` is the same pickle, to be looked at when that refuses."""
    try:
        with warnings.catch_warnings():
            # It says that another pickle protocol might not work, and then works or does not.
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        # Damaged bytes raise anything: RuntimeError, EOFError, struct.error, KeyError ...
        wanted = suspicious_globals(program, pickles=pickles)
        wanted += [name for name in re.findall(r"GLOBAL ([\w.]+)", str(error)) if name not in wanted]
        if wanted:
            raise _unsafe(path, wanted) from error
        raise CorruptCheckpoint(
            f"the checkpoint {path} is cut short or damaged ({path.stat().st_size:,} bytes)\n"
            f"  found: {_reason(error)}\n  {AGAIN}"
        ) from error


def _unsafe(path: Path, wanted: list[str]) -> UnsafeCheckpoint:
    return UnsafeCheckpoint(
        f"{path} is a pickle that wants to import and call code; nothing of it was run\n"
        f"  wanted: {name_some(wanted)}\n"
        "  fix: have it saved again as model.state_dict(), which needs none of these"
    )


def _no_checkpoint(path: Path, head: bytes) -> CheckpointError:
    with path.open("rb") as file:
        wanted = suspicious_globals(file)
        file.seek(0)
        whole = is_pickle(file)
    if whole and wanted:
        return _unsafe(path, wanted)
    if head.startswith(b"version https://git-lfs"):
        found, fix = "a pointer of Git LFS, in place of the file", "fix: git lfs pull"
    elif head.lstrip()[:1] == b"<":
        found, fix = "a web page", "fix: download the file itself"
    elif whole:
        found, fix = "a pickle that torch did not write", "fix: save model.state_dict() with torch.save or safetensors"
    elif head.startswith(b"\x80"):
        found, fix = "a pickle that is cut short or damaged", AGAIN
    else:
        found, fix = f"bytes that begin with {head[:8]!r}", "fix: a file of torch.save or safetensors"
    return CorruptCheckpoint(f"{path} is no checkpoint\n  found: {found}\n  {fix}")


def _reason(error: Exception) -> str:
    """What went wrong, without torch's advice to load the file in an unsafe way."""
    text = str(error)
    inner = re.search(r"WeightsUnpickler error: (.*)", text)
    line = inner.group(1) if inner else (text.splitlines() or [""])[0].partition("This is an internal miniz")[0]
    return f"{type(error).__name__}: {line.strip()}".rstrip(": ")
