"""Writes safetensors files piece by piece, whole or not at all, the same content as the same bytes.

Knows tensors, bytes and the format; knows nothing of models. The library of the format writes only what is in memory
as a whole, its metadata in random order, and reports a full disk as an error without a number.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import xxhash

from frostline.checkpoint.stored import StoredTensor, dtype_name
from frostline.durable import replace_file, told
from frostline.errors import CheckpointError, CorruptCheckpoint, name_some

# Safetensors have no checksum of their own; this entry of their metadata is ours.
DIGEST = "frostline.digest"
RESERVED = "__metadata__"
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2": "F8_E5M2",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
# What readers of the format refuse beyond.
_LONGEST_HEADER = 100_000_000
_PIECE = 4 * 2**20
# `frostline.state.digest` hashes longer tensors in pieces of so many bytes.
_DIGEST_PIECE = 64 * 2**20


def write_tensors(
    path: str | os.PathLike[str], entries: Mapping[str, StoredTensor], metadata: Mapping[str, str]
) -> str:
    """Write a safetensors file, or leave what was there as it was, whatever kills the process or fills the disk.

    A tensor is held in memory as far as ``entries`` make it so: those of a file pass through in pieces of 4 MiB, twice,
    because their digest stands in front of them. The file depends on names, values and metadata alone, not on their
    order, so that equal content gives equal bytes. Tied tensors are stored under each of their names.

    Args:
        path: the file; its folder exists. It may be the file that ``entries`` come from.
        entries: name to tensor. Tensors at hand become entries by :func:`~frostline.checkpoint.stored.in_memory`.
        metadata: what is stored beside them. The combined digest of the tensors is added, which
            :func:`combined_digest` makes.

    Returns:
        The combined digest.

    Raises:
        CheckpointError: the format has no such dtype or name. Nothing was written.
        CorruptCheckpoint: what ``entries`` are read from is damaged, or has changed meanwhile. Nothing was written.
        StorageFull: there is no space left.
        CannotWrite: it cannot be written for another reason.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import load_file
        >>> from frostline.checkpoint.stored import in_memory
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     digest = write_tensors(f"{folder}/a.safetensors", {"a": in_memory(torch.ones(2))}, {"by": "hand"})
        ...     print(load_file(f"{folder}/a.safetensors"), len(digest))
        {'a': tensor([1., 1.])} 32

    Source: format, "Format" in README.md of huggingface/safetensors; a header of at most 100 MB, without holes.
    """
    path = Path(path)
    _refuse(path, entries, metadata)
    # The widest first, as the library does it: each tensor then begins at a multiple of its own item size.
    ordered = {name: entries[name] for name in sorted(entries, key=lambda n: (-entries[n].dtype.itemsize, n))}
    digests: dict[str, str] = {}
    for _ in _values(ordered, digests):
        pass
    combined = combined_digest(digests)
    header = _header(path, ordered, {**metadata, DIGEST: combined})
    size = len(header) + sum(entry.nbytes for entry in ordered.values())
    with told(path, size, "  kept: what was there before\n  fix: free some space, or another path"):
        replace_file(path, _content(path, header, ordered, digests))
    return combined


def combined_digest(digests: Mapping[str, str]) -> str:
    """One digest for many tensors: of their names and their own digests, in whatever order they come.

    Args:
        digests: name to :func:`~frostline.state.digest.digest`.

    Example:
        >>> combined_digest({"a": "00", "b": "01"}) == combined_digest({"b": "01", "a": "00"})
        True
    """
    lines = [f"{name} {value}" for name, value in sorted(digests.items())]
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


def _refuse(path: Path, entries: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> None:
    """Find what the format cannot hold before anything is read."""
    for name, entry in entries.items():
        if dtype_name(entry.dtype) not in _CODES:
            raise CheckpointError(
                f"{path} cannot hold {name!r}: safetensors have no {dtype_name(entry.dtype)} of shape {entry.shape}\n"
                f"  fix: cast it before; safetensors have {', '.join(_CODES)}"
            )
    texts = [*entries, *metadata, *metadata.values()]
    bad = [text for text in texts if not _is_unicode(text)] + [name for name in entries if name == RESERVED]
    if bad:
        raise CheckpointError(
            f"{path} cannot hold these names or texts: {name_some([ascii(text) for text in bad])}\n"
            f"  found: {RESERVED!r}, which the format uses itself, or a lone surrogate, which is no character\n"
            "  fix: other names"
        )


def _header(path: Path, ordered: Mapping[str, StoredTensor], metadata: Mapping[str, str]) -> bytes:
    rows: dict[str, object] = {RESERVED: dict(sorted(metadata.items()))}
    start = 0
    for name, entry in ordered.items():
        end = start + entry.nbytes
        rows[name] = {
            "dtype": _CODES[dtype_name(entry.dtype)],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _LONGEST_HEADER:
        raise CheckpointError(
            f"{path} cannot be written: its header has {len(text):,} bytes\n"
            f"  found: {len(ordered):,} tensors, {sum(map(len, metadata.values())):,} characters of metadata\n"
            f"  fix: less of both; safetensors are read up to a header of {_LONGEST_HEADER:,} bytes"
        )
    return len(text).to_bytes(8, "little") + text


def _content(
    path: Path, header: bytes, ordered: Mapping[str, StoredTensor], digests: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    yield header
    written: dict[str, str] = {}
    yield from _values(ordered, written)
    changed = [name for name in ordered if written[name] != digests[name]]
    if changed:
        raise CorruptCheckpoint(
            f"{path} was not written: tensors changed while they were\n"
            f"  found: two readings differ: {name_some(changed)}\n"
            "  fix: write when nothing else writes to where they come from"
        )


def _values(ordered: Mapping[str, StoredTensor], digests: dict[str, str]) -> Iterator[memoryview]:
    """The bytes of all tensors, piece by piece; behind the last of a tensor its digest is in ``digests``."""
    for name, entry in ordered.items():
        digest = _Digest(entry)
        for piece in entry.pieces(_PIECE):
            content = piece.numpy().data
            digest.update(content)
            yield content
        if digest.size != entry.nbytes:
            raise CorruptCheckpoint(
                f"tensor {name!r} has {digest.size:,} bytes\n  expected: {entry.nbytes:,} by its shape "
                f"{entry.shape} and dtype {dtype_name(entry.dtype)}\n  fix: restore the file that it comes from"
            )
        digests[name] = digest.hexdigest()


class _Digest:
    """What :func:`frostline.state.digest.digest` gives, of a tensor that is never in memory as a whole."""

    def __init__(self, entry: StoredTensor) -> None:
        self.size = 0
        self._state = xxhash.xxh3_128(f"{entry.dtype}|{entry.shape}|".encode())
        self._piece: xxhash.xxh3_128 | None = None
        if entry.nbytes > _DIGEST_PIECE:
            self._state.update(f"{-(-entry.nbytes // _DIGEST_PIECE)} pieces|".encode())
            self._piece = xxhash.xxh3_128()

    def update(self, content: memoryview) -> None:
        """Go on with the next bytes; none of them cross the border of a piece, because 64 MiB are whole pieces."""
        self.size += len(content)
        if self._piece is None:
            self._state.update(content)
            return
        self._piece.update(content)
        if self.size % _DIGEST_PIECE == 0:
            self._state.update(self._piece.digest())
            self._piece.reset()

    def hexdigest(self) -> str:
        """The digest; nothing comes behind it."""
        if self._piece is not None and self.size % _DIGEST_PIECE:
            self._state.update(self._piece.digest())
        return self._state.hexdigest()


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
