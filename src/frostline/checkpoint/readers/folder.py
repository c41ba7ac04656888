"""Which files of a folder are its checkpoint; two that could be are named, and none is chosen.

Knows names of files; opens none.
"""

from __future__ import annotations

import re
from pathlib import Path

from frostline.checkpoint.readers.refusals import LOCAL, shown, unreadable
from frostline.checkpoint.readers.sharded import ShardSet, missing
from frostline.errors import CheckpointError, name_some

# What model hubs and our own runs call the checkpoint of a folder, beside which other files of the training lie.
PREFERRED = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".th", ".ckpt"})
INDEX = ".index.json"
DISTRIBUTED = ".metadata"
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")


def find_in_folder(folder: Path) -> Path | ShardSet:
    """Find the checkpoint of a folder: an index, else a file of a usual name, else numbered shards, else the only file.

    Args:
        folder: where to look; folders in it are not looked into.

    Returns:
        A file, or shards that have no index.

    Raises:
        CheckpointError: there is none, there are several, or shards are missing.
    """
    try:
        files = {entry.name: entry for entry in sorted(folder.iterdir()) if not entry.is_dir()}
    except OSError as error:
        raise unreadable(folder, error) from error
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
    if DISTRIBUTED in files and not sets and not others:
        raise CheckpointError(
            f"{shown(folder)} is a folder of torch.distributed.checkpoint, which holds no files of tensors\n"
            "  fix: torch.distributed.checkpoint.format_utils.dcp_to_torch_save(folder, file) makes a file of it"
        )
    shards = [name for names in sets.values() for name in names]
    return files[_only(folder, [*others, *shards])]


def _numbered(stem: str, count: int, suffix: str, there: int) -> list[str]:
    """The names that a set of shards should have; of a count that nobody could have meant, some of them."""
    return [f"{stem}-{number:05d}-of-{count:05d}{suffix}" for number in range(1, min(count, there + 100) + 1)]


def _only(folder: Path, candidates: list[str]) -> str:
    if not candidates:
        raise CheckpointError(
            f"the folder {shown(folder)} holds no checkpoint\n"
            f"  expected: one file of {', '.join(sorted(SUFFIXES))}, or *{INDEX}\n  {LOCAL}"
        )
    if len(candidates) > 1:
        raise CheckpointError(
            f"the folder {shown(folder)} holds {len(candidates)} files that could be the checkpoint\n"
            f"  found: {name_some(candidates)}\n  fix: the path of one of them"
        )
    return candidates[0]
