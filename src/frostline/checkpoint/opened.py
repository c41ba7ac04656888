"""A checkpoint that is open: clean names, shapes and dtypes at hand, values on demand.

Puts together what a reader found, the container that was chosen, and the names without wrappers; says each choice.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from torch import Tensor, nn

from frostline.checkpoint.container import FLAT_SHARD, strip_wrappers, unwrap
from frostline.checkpoint.readers.contents import Contents
from frostline.checkpoint.readers.open_file import read_contents
from frostline.checkpoint.run_parts import run_parts
from frostline.checkpoint.stored import StoredTensor, in_memory
from frostline.errors import CheckpointError, name_some, printable
from frostline.state.inventory import inventory
from frostline.state.names import is_under, join, nearest

Source: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any] | nn.Module"


@dataclass(frozen=True)
class Checkpoint:
    """What was taken of a checkpoint.

    Attributes:
        path: the file or folder; ``None`` for tensors that were given themselves.
        title: what it is called in reports.
        format: ``safetensors``, ``torch`` (zip), ``torch legacy`` ...
        tensors: names without containers, wrappers and the path that was taken, in the order of the checkpoint.
        outside: what lies beside the path that was taken, under whole names.
        originals: name in ``tensors`` to the name in the file.
        container: the keys that led to the tensors, outermost first.
        subtree: the path that was taken among their names; empty for all.
        stripped: the wrapper names that were taken out.
        prefix: what every name began with, where that beginning is all that was taken out; otherwise empty.
        beside: names in the same dictionary whose values are no tensors.
        metadata: the texts that a safetensors header carries.
        files: every file that belongs to it.
        shards: over how many of them its tensors are spread; 0 where it is a single file.
        opaque: types whose values were left as inert data.
    """

    path: Path | None
    title: str
    format: str
    tensors: Mapping[str, StoredTensor]
    outside: Mapping[str, StoredTensor]
    originals: Mapping[str, str]
    container: tuple[str, ...]
    subtree: str
    stripped: tuple[str, ...]
    prefix: str
    beside: tuple[str, ...]
    metadata: Mapping[str, str]
    files: tuple[Path, ...]
    opaque: tuple[str, ...]
    shards: int = 0

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of what was taken."""
        return {name: entry.shape for name, entry in self.tensors.items()}

    def whole_name(self, name: str) -> str:
        """The name of one of ``tensors`` with the path that was taken in front: unique beside ``outside``."""
        return join(self.subtree, name)

    def read_all(self) -> dict[str, Tensor]:
        """Every tensor that was taken, on the CPU."""
        return {name: entry.read() for name, entry in self.tensors.items()}

    def choices(self) -> list[str]:
        """What was chosen and taken out on the way to the names, in words."""
        said = [f"container {'.'.join(self.container)!r}"] if self.container else []
        if self.prefix:
            said.append(f"prefix {self.prefix!r} stripped")
        elif self.stripped:
            said.append(f"{name_some([repr(token) for token in self.stripped])} stripped from names")
        if self.subtree:
            said.append(f"took {self.subtree!r}, left {len(self.outside)} tensors beside it")
        if self.opaque:
            said.append(f"left as inert data: {name_some(self.opaque)}")
        return [printable(text) for text in said]


def open_checkpoint(
    source: Source, *, take: str | None = None, keep: Collection[str] = (), allow_pickle: bool = False
) -> Checkpoint:
    """Open a checkpoint: names and shapes now, values when they are asked for. No code of it is run.

    Args:
        source: a file, a folder, an index of shards; or tensors under their names, nested or not; or a model.
        take: which part: the keys of a container, a dotted path among the names in it, or the one and then the other.
        keep: wrapper names that stay in names, because the model itself has them.
        allow_pickle: run whatever code the file brings. Only for files that you trust as you trust a program.

    Returns:
        The :class:`Checkpoint`.

    Raises:
        CorruptCheckpoint: a file is empty, cut short, damaged, or no checkpoint.
        UnsafeCheckpoint: a file wants to run code, and ``allow_pickle`` does not let it.
        CheckpointError: it does not exist, holds no tensors, or several sets of them and ``take`` does not choose; or
            nothing in it is called ``take``.

    Example:
        >>> import torch
        >>> found = open_checkpoint({"state_dict": {"module.fc.weight": torch.ones(2)}, "epoch": 3})
        >>> dict(found.shapes), found.container, found.prefix
        ({'fc.weight': (2,)}, ('state_dict',), 'module.')
    """
    if isinstance(source, nn.Module):
        tensors = {name: e.value for name, e in inventory(source).items() if e.is_tensor and e.persistent}
        contents = Contents("live model", _stored(tensors), ())
        path, title = None, type(source).__name__
    elif isinstance(source, Mapping):
        try:
            contents = Contents("state dict", _stored(source), ())
        except RecursionError as error:
            raise CheckpointError("the state dict holds itself\n  fix: model.state_dict()") from error
        path, title = None, "the state dict"
    else:
        path = Path(source)
        contents = read_contents(path, allow_pickle=allow_pickle)
        title = path.name or str(path)
    where = str(path) if path is not None else title
    # Safetensors have no containers: a tensor of a name such as "ema" is just that. Those of our own runs have two.
    if "safetensors" in contents.format or isinstance(source, nn.Module):
        flat_root = cast("Mapping[str, object]", contents.root)
        parts = run_parts(flat_root, contents.metadata)
        root, container, rest = unwrap(parts, where, take or "") if parts else (flat_root, (), take or "")
    else:
        root, container, rest = unwrap(contents.root, where, take or "")
    named = {str(name): value for name, value in root.items() if isinstance(value, StoredTensor)}
    flat = [name for name in named if FLAT_SHARD in name.split(".")]
    if flat:
        raise CheckpointError(
            f"{where} holds flat shards of FSDP, which are no tensors of a model: {name_some(flat)}\n"
            "  fix: save it with StateDictType.FULL_STATE_DICT, or with torch.distributed.checkpoint"
        )
    clean, stripped = strip_wrappers(named, keep=keep)
    originals = dict(zip(clean, named, strict=True))
    beginnings = {old.removesuffix(new) if old.endswith(new) else "" for new, old in originals.items()}
    taken, outside = _split(clean, rest, where)
    return Checkpoint(
        path=path,
        title=printable(title),
        format=contents.format,
        tensors=taken,
        outside=outside,
        originals={_relative(name, rest): old for name, old in originals.items() if name not in outside},
        container=container,
        subtree=rest,
        stripped=tuple(stripped),
        prefix=beginnings.pop() if len(beginnings) == 1 else "",
        beside=tuple(str(name) for name, value in root.items() if not isinstance(value, StoredTensor)),
        metadata=contents.metadata,
        files=contents.files,
        opaque=contents.opaque,
        shards=contents.shards,
    )


def _stored(value: Any) -> Any:
    """The same nest of dictionaries with tensors as entries of a checkpoint."""
    if isinstance(value, Tensor):
        return in_memory(value)
    if isinstance(value, Mapping):
        return {key: _stored(inner) for key, inner in cast("Mapping[Any, Any]", value).items()}
    return value


def _relative(name: str, path: str) -> str:
    return name[len(path) + 1 :] if path and is_under(name, path) and name != path else name


def _split(
    tensors: Mapping[str, StoredTensor], path: str, where: str
) -> tuple[dict[str, StoredTensor], dict[str, StoredTensor]]:
    """What lies under a path, by its name below it, and the rest."""
    if not path:
        return dict(tensors), {}
    taken = {_relative(name, path): entry for name, entry in tensors.items() if is_under(name, path) and name != path}
    if not taken:
        tops = list(dict.fromkeys(".".join(name.split(".")[:n]) for name in tensors for n in (1, 2) if "." in name))
        near = nearest(path, tops) or tops
        raise CheckpointError(
            f"{where} has nothing under take={path!r}\n"
            f"  found: {name_some(near) or 'no names with dots'}\n"
            "  fix: take= one of these, or leave it away for all"
        )
    return taken, {name: entry for name, entry in tensors.items() if not is_under(name, path) or name == path}
