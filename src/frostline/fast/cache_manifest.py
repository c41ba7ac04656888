"""The one file that says what a cache folder holds, and whether the folder is one at all.

Knows names of files and their records; knows nothing of models or datasets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import xxhash

from frostline.durable import is_partial, replace_file, told
from frostline.errors import CacheError, CacheMismatch, CannotWrite, CorruptCache, name_some
from frostline.fast.cache_key import CacheKey
from frostline.fast.sample_parts import Form
from frostline.fast.sample_table import SampleTable
from frostline.fast.shards import ShardRecord, read_tensors, write_shard
from frostline.fast.writer_lock import LOCK

SCHEMA_VERSION = 1
NAME = "manifest.json"
KIND = "frostline.features"
REBUILD = "another folder, or rebuild=True to replace what is there"
_OURS = re.compile(r"view-\d{3,}-shard-\d{5,}\.safetensors|samples-\d{5,}\.safetensors")


@dataclass(frozen=True)
class TableRecord:
    """The file of the sample table."""

    file: str
    digest: str
    nbytes: int


@dataclass(frozen=True)
class Manifest:
    """What a cache folder holds.

    Attributes:
        key: what its features depend on.
        origin: another one whenever the cache is made anew: slots of two origins have nothing to do with each other.
        input: how the input of a sample is built.
        target: how its target is built.
        views: how many views have been asked for.
        table: which sample lies in which slot.
        shards: the files of features.
        rate: samples computed each second when it was filled last, with loading; 0 where unknown.
    """

    key: CacheKey
    origin: str
    input: Form
    target: Form
    views: int
    table: TableRecord
    shards: tuple[ShardRecord, ...] = field(default=())
    rate: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all files that it names."""
        return self.table.nbytes + sum(shard.nbytes for shard in self.shards)

    def next_file(self, view: int) -> str:
        """A name for the next file of a view, which no file has that is named here."""
        numbers = [_number(shard.file) for shard in self.shards if shard.view == view]
        return f"view-{view:03d}-shard-{max(numbers, default=-1) + 1:05d}.safetensors"

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON-ready values."""
        return {
            "key": self.key.to_json(),
            "origin": self.origin,
            "input": self.input.to_json(),
            "target": self.target.to_json(),
            "views": self.views,
            "table": {"file": self.table.file, "digest": self.table.digest, "nbytes": self.table.nbytes},
            "shards": [shard.to_json() for shard in self.shards],
            "rate": self.rate,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Manifest:
        """The manifest that :meth:`to_json` gave."""
        table = value["table"]
        return Manifest(
            key=CacheKey.from_json(value["key"]),
            origin=str(value["origin"]),
            input=Form.from_json(value["input"]),
            target=Form.from_json(value["target"]),
            views=int(value["views"]),
            table=TableRecord(str(table["file"]), str(table["digest"]), int(table["nbytes"])),
            shards=tuple(ShardRecord.from_json(shard) for shard in value["shards"]),
            rate=float(value["rate"]),
        )


def read_manifest(folder: Path) -> Manifest | None:
    """Read what a folder holds.

    Returns:
        The manifest; ``None`` where the folder does not exist, is empty, or was left by a writer that was killed before
        it had written anything.

    Raises:
        CacheError: it is no folder, cannot be read, or holds something else.
        CacheMismatch: another version of Frostline made it.
        CorruptCache: the manifest is damaged, or missing beside features.
    """
    try:
        content = (folder / NAME).read_bytes()
    except FileNotFoundError:
        _refuse_others(folder)
        return None
    except NotADirectoryError as error:
        raise CacheError(f"{folder} is a file, not a folder of features\n  fix: another folder") from error
    except OSError as error:
        raise CacheError(f"{folder / NAME} cannot be read: {error.strerror}\n  fix: another folder") from error
    try:
        value: Any = json.loads(content)
        kind, version = value["kind"], value["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(folder, "it is no JSON of ours") from error
    if kind != KIND:
        raise CacheError(f"{folder} holds {kind!r}, not features\n  fix: another folder")
    if version != SCHEMA_VERSION:
        raise CacheMismatch(
            f"{folder} was made by another version\n  asked: schema version {SCHEMA_VERSION}\n"
            f"  found: schema version {version}\n  fix: {REBUILD}"
        )
    try:
        body = cast("dict[str, Any]", value["body"])
        if value["digest"] != _digest(body):
            raise _damaged(folder, "its digest is another one")
        return Manifest.from_json(body)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CorruptCache):
            raise
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest in one step; what it names is there already.

    Raises:
        StorageFull: there is no space left.
        CannotWrite: it cannot be written for another reason.
    """
    body = manifest.to_json()
    value = {"kind": KIND, "schema_version": SCHEMA_VERSION, "digest": _digest(body), "body": body}
    content = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    with told(folder / NAME, len(content), "  kept: what was there before\n  fix: free some space, or another folder"):
        replace_file(folder / NAME, content)


def write_table(folder: Path, table: SampleTable) -> TableRecord:
    """Write the sample table to a new file, so that the one in use stays as it is.

    Raises:
        StorageFull: there is no space left.
        CannotWrite: it cannot be written for another reason.
    """
    numbers = [_number(path.name) for path in folder.glob("samples-*.safetensors") if _OURS.fullmatch(path.name)]
    name = f"samples-{max(numbers, default=-1) + 1:05d}.safetensors"
    entries = {name: entry.read() for name, entry in table.tensors().items()}
    digest, nbytes = write_shard(folder / name, entries, {})
    return TableRecord(name, digest, nbytes)


def read_table(folder: Path, record: TableRecord) -> SampleTable:
    """Read the sample table.

    Raises:
        CorruptCache: it is damaged. Without it nobody can say which features are whose.
    """
    try:
        return SampleTable.of(read_tensors(folder / record.file, record.digest, record.nbytes))
    except (CorruptCache, KeyError, ValueError) as error:
        first = str(error).splitlines()
        raise CorruptCache(
            f"{folder / record.file} is damaged: nobody can say which features are whose\n"
            f"  {first[1].strip() if len(first) > 1 else error}\n  fix: {REBUILD}"
        ) from error


def read_both(folder: Path) -> tuple[Manifest, SampleTable] | None:
    """Read the manifest and the table that it names, while a writer may be replacing both.

    Raises:
        CacheError: as :func:`read_manifest`.
        CorruptCache: either is damaged.
    """
    manifest = read_manifest(folder)
    while manifest is not None:
        try:
            return manifest, read_table(folder, manifest.table)
        except CorruptCache:
            newer = read_manifest(folder)
            if newer is None or newer.table == manifest.table:
                raise
            manifest = newer
    return None


def remove_others(folder: Path, manifest: Manifest | None) -> None:
    """Remove files of ours that the manifest does not name, which killed writers left; others are never touched."""
    named = set[str]() if manifest is None else {manifest.table.file, *(shard.file for shard in manifest.shards)}
    for path in folder.iterdir():
        if is_ours(path) and path.name not in named:
            # Windows keeps what a reader has mapped; the next writer tries again.
            with suppress(OSError):
                path.unlink()


def is_ours(path: Path) -> bool:
    """Tell whether a file in the folder is features, a table, or what a killed writer left of one."""
    return _OURS.fullmatch(path.name) is not None or is_partial(path)


def make_folder(folder: Path) -> None:
    """Make the folder and those above it.

    Raises:
        CannotWrite: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(
            f"{folder} cannot be made: {error.strerror}\n  fix: another folder for the features"
        ) from error


def _refuse_others(folder: Path) -> None:
    try:
        found = sorted(path.name for path in folder.iterdir() if path.name != LOCK and not is_partial(path))
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise CacheError(f"{folder} is a file, not a folder of features\n  fix: another folder") from error
    except OSError as error:
        raise CacheError(f"{folder} cannot be read: {error.strerror}\n  fix: another folder") from error
    others = [name for name in found if not _OURS.fullmatch(name)]
    if others:
        raise CacheError(
            f"{folder} holds something else, and was left alone\n  found: {name_some(others)}\n  fix: another folder"
        )
    # A table alone comes before the first manifest.
    if any(name.startswith("view-") for name in found):
        raise _damaged(folder, "it is missing")


def _number(name: str) -> int:
    return int(name.rpartition("-")[2].partition(".")[0])


def _digest(body: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def _damaged(folder: Path, found: str) -> CorruptCache:
    return CorruptCache(f"{folder / NAME} is damaged\n  found: {found}\n  fix: {REBUILD}")
