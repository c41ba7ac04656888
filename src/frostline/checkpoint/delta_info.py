"""What a delta holds and what it stands on, as it says so itself in its header.

Knows headers and digests; knows nothing of models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frostline.checkpoint.readers.open_file import read_contents
from frostline.checkpoint.tensor_writer import combined_digest
from frostline.errors import CheckpointError, CorruptCheckpoint, printable
from frostline.tables import html_text

SCHEMA_VERSION = 1
KEY = "frostline.delta"


@dataclass(frozen=True)
class DeltaInfo:
    """What a delta holds, and what it stands on; prints as one line.

    Attributes:
        path: the file; ``None`` where only its metadata was looked at.
        name: what it was called.
        model_type: the class name of the model.
        tensors: how many are stored.
        elements: how many numbers those are.
        nbytes: how many bytes these take.
        base_entries: the rest of the model: path to digest.
        base_digest: all of these in one digest.
        base_nbytes: how many bytes the rest takes in the model.
        beside: paths that the delta has nothing to do with.
    """

    path: Path | None
    name: str
    model_type: str
    tensors: int
    elements: int
    nbytes: int
    base_entries: Mapping[str, str]
    base_digest: str
    base_nbytes: int
    beside: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The same as JSON-ready values with a schema version."""
        return {
            "schema_version": SCHEMA_VERSION,
            **self.__dict__,
            "path": None if self.path is None else str(self.path),
            "base_entries": dict(self.base_entries),
            "beside": list(self.beside),
        }

    @property
    def where(self) -> str:
        """The file and the name, for messages."""
        return printable(f"{self.path or 'the delta'}{f' ({self.name!r})' if self.name else ''}")

    def __str__(self) -> str:
        title = " ".join(([self.path.name] if self.path else []) + ([repr(self.name)] if self.name else []))
        rest = f"{len(self.base_entries):,} tensors, {_size(self.base_nbytes)}"
        return printable(
            f"{title or 'delta'}: {self.tensors:,} tensors, {self.elements:,} elements, {_size(self.nbytes)}; "
            f"on {self.model_type} {self.base_digest[:12]} ({rest})"
        )

    def _repr_html_(self) -> str:
        return html_text(self)


def read_delta_info(source: str | os.PathLike[str] | Mapping[str, str]) -> DeltaInfo:
    """What a delta holds, from its header alone.

    Args:
        source: the file, or the metadata of its header.

    Raises:
        CheckpointError: it is no delta.
        CorruptCheckpoint: it is damaged.
    """
    if isinstance(source, Mapping):
        return parse_delta(source, None)
    return parse_delta(read_contents(source).metadata, Path(source))


def parse_delta(metadata: Mapping[str, str], path: Path | None) -> DeltaInfo:
    """What a delta holds, from the metadata of its header.

    Raises:
        CheckpointError: it is no delta, or one of another version.
        CorruptCheckpoint: it is damaged.
    """
    where = printable(str(path)) if path else "the metadata"
    text = metadata.get(KEY)
    if text is None:
        raise CheckpointError(
            f"{where} is no delta: there is no {KEY!r} in its header\n  fix: load a whole checkpoint with plan_load"
        )
    try:
        fields: dict[str, Any] = json.loads(text)
        version = fields.pop("schema_version")
        if version == SCHEMA_VERSION:
            return _checked(DeltaInfo(path=path, beside=tuple(fields.pop("beside")), **fields))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCheckpoint(
            f"{where} has a damaged header\n  found: {printable(str(error))}\n  fix: restore it"
        ) from error
    raise CheckpointError(
        f"{where} is a delta of schema version {version!r}, this version reads {SCHEMA_VERSION}\n"
        "  fix: the version of frostline that wrote it"
    )


def _checked(info: DeltaInfo) -> DeltaInfo:
    texts = [info.name, info.model_type, info.base_digest, *info.beside, *info.base_entries.values()]
    numbers = [info.tensors, info.elements, info.nbytes, info.base_nbytes]
    if any(type(text) is not str for text in texts) or any(type(n) is not int or n < 0 for n in numbers):
        raise TypeError("a field of another type")
    if combined_digest(info.base_entries) != info.base_digest:
        raise ValueError("the digest of the base is not that of its entries")
    return info


def _size(count: int) -> str:
    """Bytes as people read them.

    Example:
        >>> _size(999), _size(2600), _size(1_100_000)
        ('999 B', '2.6 kB', '1.1 MB')
    """
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.3g} {units[0]}"
