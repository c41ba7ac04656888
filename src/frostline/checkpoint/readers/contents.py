"""What a reader finds in a file, before anything of it is chosen or renamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds, as its author nested it.

    Attributes:
        format: ``safetensors``, ``sharded safetensors``, ``torch`` (zip), ``torch legacy`` ...
        root: what the file holds. Where it is a dictionary, tensors in it, at any depth, are
            :class:`~frostline.checkpoint.stored.StoredTensor`; everything else is plain data or an opaque stand-in.
        metadata: the texts that a safetensors header carries.
        versions: what ``state_dict()._metadata`` said: module path to version, by the path of its container.
        opaque: names of harmless types whose values were left as inert data, such as ``argparse.Namespace``.
        files: every file that belongs to it.
        shards: over how many of them its tensors are spread; 0 where it is a single file.
    """

    format: str
    root: object
    files: tuple[Path, ...]
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    versions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, "Mapping[str, Any]"])
    opaque: tuple[str, ...] = ()
    shards: int = 0
