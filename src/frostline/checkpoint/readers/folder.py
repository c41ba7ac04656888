"""Which files of a folder are its checkpoint; two that could be are named, and none is chosen.

Knows names of files; opens none.
"""

from __future__ import annotations

import re
from pathlib import Path

from frostline.checkpoint.readers.distributed import INDEX_FILE, SHARD_SUFFIX
from frostline.checkpoint.readers.refusals import LOCAL, shown, unreadable
from frostline.checkpoint.readers.sharded import ShardSet, missing
from frostline.errors import CheckpointError, name_some

# What model hubs and our own runs call the checkpoint of a folder, beside which other files of the training lie.
PREFERRED = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".th", ".ckpt"})
INDEX = ".index.json"
# Lightning writes what is no tensor into this file beside the shards.
_BESIDE_DISTRIBUTED = ("meta.pt",)
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")


def find_in_folder(folder: Path) -> Path | ShardSet:
    """Find the checkpoint of a folder: an index, else a file of a usual name, else numbered shards, else the only file.

    Args:
        folder: where to look; folders in it are not looked into.

    Returns:
        A file, which may be the index of a folder of ``torch.distributed.checkpoint``; or shards that have no index.

    Raises:
        CheckpointError: there is none, there are several, or shards are missing.
    """
    try:
        files = {entry.name: entry for entry in sorted(folder.iterdir()) if not entry.is_dir()}
    except OSError as error:
        raise unreadable(folder, error) from error
    shards = [name for name in files if name.endswith(SHARD_SUFFIX)]
    if INDEX_FILE in files and (shards or len(files) == 1):
        rivals = [name for name in files if Path(name).suffix in SUFFIXES and name not in _BESIDE_DISTRIBUTED]
        return files[_only(folder, [INDEX_FILE, *rivals])]
    if shards:
        raise CheckpointError(
            f"{shown(folder)} holds {len(shards)} files of torch.distributed.checkpoint, and no {INDEX_FILE}\n"
            f"  found: {name_some(shards)}\n"
            f"  fix: a checkpoint whose saving came to its end, which writes {INDEX_FILE} last; or copy that file too"
        )
    for candidates in (
        [name for name in files if name.endswith(INDEX)],
        [name for name in PREFERRED if name in files],
    ):
        if candidates:
            return files[_only(folder, candidates)]
    sets: dict[tuple[str, int, str], list[str]] = {}
    others: list[str] = []
    for name in files:
        match = _NUMBERED.fullmatch(name)
        if match and match["suffix"] in SUFFIXES:
            sets.setdefault((match["stem"], int(match["count"]), match["suffix"]), []).append(name)
        elif Path(name).suffix in SUFFIXES:
            others.append(name)
    if len(sets) == 1 and not others:
        ((stem, count, suffix), names) = next(iter(sets.items()))
        if len(names) != count:
            absent = [name for name in _numbered(stem, count, suffix, len(names)) if name not in files]
            raise missing(folder, [folder / name for name in absent], of=count)
        return ShardSet(folder, tuple(files[name] for name in names))
    numbered = [name for names in sets.values() for name in names]
    return files[_only(folder, [*others, *numbered])]


def _numbered(stem: str, count: int, suffix: str, there: int) -> list[str]:
    """The names that a set of shards should have; of a count that nobody could have meant, some of them."""
    return [f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, min(count, there + 100) + 1)]


def _only(folder: Path, candidates: list[str]) -> str:
    if not candidates:
        raise CheckpointError(
            f"the folder {shown(folder)} holds no checkpoint\n"
            f"  expected: one file of {', '.join(sorted(SUFFIXES))}, or *{INDEX}, or {INDEX_FILE}\n  {LOCAL}"
        )
    if len(candidates) > 1:
        raise CheckpointError(
            f"the folder {shown(folder)} holds {len(candidates)} files that could be the checkpoint\n"
            f"  found: {name_some(candidates)}\n  fix: the path of one of them"
        )
    return candidates[0]
