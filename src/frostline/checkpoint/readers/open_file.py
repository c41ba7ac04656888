"""Opens a checkpoint of any format: a file, an index with its shards, or a folder. Local files only; no code is run.

The format is told by the content, not by the name.
"""

from __future__ import annotations

import gc
import os
import re
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from frostline.checkpoint.readers.contents import Contents
from frostline.checkpoint.readers.distributed import INDEX_FILE, SHARD_SUFFIX, read_distributed, refuse_shard
from frostline.checkpoint.readers.folder import find_in_folder
from frostline.checkpoint.readers.pickle_data import BadPickle, read_pickle
from frostline.checkpoint.readers.pickle_names import Names, Opaque
from frostline.checkpoint.readers.refusals import AGAIN, LOCAL, shown, unsafe
from frostline.checkpoint.readers.safetensors_file import LENGTH, LONGEST_HEADER, read_safetensors
from frostline.checkpoint.readers.sharded import is_index, join_shards, read_index
from frostline.checkpoint.readers.source import SourceFile, look_at
from frostline.checkpoint.readers.torch_legacy import is_torch_legacy, read_torch_legacy
from frostline.checkpoint.readers.torch_zip import ZIP_MAGIC, read_torch_zip
from frostline.errors import CheckpointError, CorruptCheckpoint

_HEAD = 512
_TAR = (257, b"ustar")
# Of a file that is no checkpoint, so much is looked at to say what it is.
_LOOKED_AT = 2**24
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def read_contents(path: str | os.PathLike[str], *, allow_pickle: bool = False) -> Contents:
    """Open a checkpoint: names, dtypes and shapes at once, tensors when they are asked for. It is only read.

    Args:
        path: a file of safetensors or torch, an index of shards (``*.index.json``), or a folder that holds one
            checkpoint, that of ``torch.distributed.checkpoint`` too.
        allow_pickle: run the code that a pickle names, if it cannot be read without. That code can do anything.

    Returns:
        What it holds, with a :class:`~frostline.checkpoint.stored.StoredTensor` for each tensor.

    Raises:
        CorruptCheckpoint: it is empty, cut short, damaged, or no checkpoint.
        UnsafeCheckpoint: it is a pickle or a program that wants to run code; the message says which.
        CheckpointError: it does not exist, may not be read, is not local, or a folder holds several.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"fc.weight": torch.ones(2)}, "epoch": 3}, f"{folder}/a.pth")
        ...     contents = read_contents(folder)
        ...     values = contents.root["state_dict"]["fc.weight"].read()
        >>> contents.format, contents.root["epoch"], values
        ('torch', 3, tensor([1., 1.]))
    """
    name = os.fsdecode(path)
    # A drive of Windows is one letter.
    if _REMOTE.match(name) and not os.path.lexists(name):
        raise CheckpointError(f"the checkpoint {shown(name)} is not on this machine; local files only\n  {LOCAL}")
    local = Path(name)
    with _collector_paused():
        if not stat.S_ISDIR(look_at(local).st_mode):
            return _read_file(local, allow_pickle)
        found = find_in_folder(local)
        if isinstance(found, Path):
            return _read_file(found, allow_pickle)
        return join_shards(found, lambda shard: _read_file(shard, allow_pickle, index=False))


def _read_file(path: Path, allow_pickle: bool, *, index: bool = True) -> Contents:
    if path.name == INDEX_FILE:
        return read_distributed(path.parent)
    if path.suffix == SHARD_SUFFIX:
        raise refuse_shard(path)
    source = SourceFile(path)
    if not source.size:
        raise CorruptCheckpoint(f"the checkpoint {shown(path)} is empty (0 bytes)\n  {AGAIN}")
    with source.open() as file:
        head = source.read(file, 0, _HEAD)
    if _looks_like_safetensors(source, head):
        return read_safetensors(source)
    read = read_torch_zip if head.startswith(ZIP_MAGIC) else read_torch_legacy if is_torch_legacy(head) else None
    if read is None:
        if index and is_index(source, head):  # but a shard is none
            shards = read_index(source)
            return join_shards(shards, lambda shard: _read_file(shard, allow_pickle, index=False))
        raise _no_checkpoint(source, head)
    return read(source, allow_pickle=allow_pickle)


def _looks_like_safetensors(source: SourceFile, head: bytes) -> bool:
    length = int.from_bytes(head[:LENGTH], "little")
    if length <= LONGEST_HEADER and head[LENGTH : LENGTH + 1] == b"{":
        return True
    # One whose length is damaged, which its name alone gives away.
    known = head.startswith((ZIP_MAGIC, b"\x80", b"{", b"<", b"version "))
    return source.path.suffix == ".safetensors" and not known


def _no_checkpoint(source: SourceFile, head: bytes) -> CheckpointError:
    path = source.path
    with source.open() as file:
        program = source.read(file, 0, _LOOKED_AT)
    names = Names({}, len(program))
    try:
        read_pickle(program, names, lambda _: Opaque("a persistent id"))
        whole = len(program) > 1
    except BadPickle:
        whole = False
    if names.wanted and (whole or head.startswith(b"\x80")):
        return unsafe(path, sorted(names.wanted), of_torch=False)
    if head.startswith(b"version https://git-lfs"):
        found, fix = "a pointer of Git LFS, in place of the file", "fix: git lfs pull"
    elif head[_TAR[0] :].startswith(_TAR[1]):
        found = "a tar archive: either none of torch, or the format that torch wrote before version 0.1.10"
        fix = "fix: torch.load(..., weights_only=False) where you trust it, and save its state_dict()"
    elif head.lstrip()[:1] == b"<":
        found, fix = "a web page", "fix: download the file itself"
    elif whole:
        found, fix = "a pickle that torch did not write", "fix: save model.state_dict() with torch.save or safetensors"
    elif head.startswith(b"\x80"):
        found, fix = "a pickle that is cut short or damaged", AGAIN
    else:
        found, fix = f"bytes that begin with {head[:8]!r}", "fix: a file of torch.save or safetensors"
    return CorruptCheckpoint(f"{shown(path)} is no checkpoint\n  found: {found}\n  {fix}")


@contextmanager
def _collector_paused() -> Generator[None, None, None]:
    """Look for no garbage while thousands of small objects are made that stay: it takes longer than all else."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()
