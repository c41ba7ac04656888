"""Writes folders of ``torch.distributed.checkpoint``: each process its shards, all of it or nothing, checked by value.

Torch's own ``save`` writes, so that its ``load`` reads. Around it: the folder gets its name when everything in it is on
the disk and has been read again, and an error in one process is one in all.
"""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor

from frostline.checkpoint.processes import in_every_process
from frostline.checkpoint.readers.distributed import read_distributed
from frostline.checkpoint.readers.distributed_tensor import ShardedTensor
from frostline.durable import PARTIAL, storage_full, sync_folder, told
from frostline.errors import CannotWrite, CheckpointError, CorruptCheckpoint, RanksDiffer, name_some
from frostline.state.digest import digest, digest_all
from frostline.state.shards import own_part, part_of

_KEPT = "  kept: nothing of it\n  fix: free some space, or another folder"


def write_distributed(folder: str | os.PathLike[str], collect: Callable[[], Mapping[str, Any]]) -> int:
    """Write a folder, whole or not at all; with an initialized ``torch.distributed`` each process has to call this.

    Args:
        folder: where to; it does not exist or is empty, and its parent exists.
        collect: gives what this process has: tensors and other values under their names, nested or not.

    Returns:
        How many tensors all processes wrote together.

    Raises:
        CheckpointError: there is something already, or no tensor to write; another process failed; or torch was built
            without ``torch.distributed``.
        RanksDiffer: a tensor that is not sharded has other values in another process.
        StorageFull: there is no space left.
        CannotWrite: it cannot be written for another reason.
    """
    if not dist.is_available():
        raise CheckpointError("this torch was built without torch.distributed\n  fix: save as safetensors")
    path = Path(folder)
    groups = [None] if dist.is_initialized() else []
    first = not groups or dist.get_rank() == 0
    state: dict[str, Any] = {}
    tensors: dict[tuple[object, ...], Tensor] = {}

    def prepare() -> str:
        _check_free(path)
        state.update(collect())
        tensors.update(_tensors(state))
        if not tensors:
            raise CheckpointError(f"{path}: there is no tensor to write\n  fix: other selectors")
        return secrets.token_hex(4)

    token = in_every_process(groups, prepare)[0]
    _compare_copies(groups, tensors)
    beside = path.with_name(f".{path.name}.{token}{PARTIAL}")
    try:
        _save(state, beside, path, sum(own_part(tensor).nbytes for tensor in tensors.values()))
        written = in_every_process(groups, lambda: _check_written(beside, tensors, copies=first))
        in_every_process(groups, lambda: _give_name(beside, path) if first else None)
    except BaseException:
        if first:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    return len({name for theirs in written for name in theirs})


def _check_free(path: Path) -> None:
    if not path.parent.is_dir():
        raise CannotWrite(f"{path} cannot be written: {path.parent} is no folder\n  fix: a folder that exists")
    if path.is_dir() and not any(path.iterdir()):
        return
    if os.path.lexists(path):
        raise CheckpointError(
            f"{path} is there already, and is not written over\n  fix: another folder, such as one for each step"
        )


def _tensors(value: object, path: tuple[object, ...] = ()) -> dict[tuple[object, ...], Tensor]:
    """The tensors in a nest of dictionaries and lists, by the keys that lead to them."""
    if isinstance(value, Tensor):
        return {path: value}
    items: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        items = list(cast("Mapping[object, object]", value).items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(cast("list[object]", value)))
    return {name: each for key, inner in items for name, each in _tensors(inner, (*path, key)).items()}


def _compare_copies(groups: list[Any], tensors: Mapping[tuple[object, ...], Tensor]) -> None:
    """See that what one process writes for all is the same in all: torch takes any of them, and does not say so."""
    if not groups:
        return
    copies = {_name(key): tensor for key, tensor in tensors.items() if part_of(tensor) is None}
    ranks = in_every_process(groups, lambda: digest_all({key: own_part(tensor) for key, tensor in copies.items()}))
    marks: dict[str, set[str]] = {}
    for theirs in ranks:
        for key, mark in theirs.items():
            marks.setdefault(key, set()).add(mark)
    apart = [key for key, found in marks.items() if len(found) > 1]
    if apart:
        raise RanksDiffer(
            f"{len(apart)} tensors that one process would write for all are not the same in all: {name_some(apart)}\n"
            "  fix: frostline.norms.merge_statistics(model) for running statistics; otherwise the same weights in all"
        )


def _save(state: dict[str, Any], beside: Path, path: Path, size: int) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one process writes alone
            save(state, storage_writer=FileSystemWriter(beside))
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        where = f"{path} (process {rank})" if dist.is_initialized() else str(path)
        full = storage_full(cause, path, size, _KEPT) if isinstance(cause, OSError) else None
        said = str(cause).splitlines() or [type(cause).__name__]
        raise full or CannotWrite(
            f"{where} cannot be written: {type(cause).__name__}: {said[0]}\n"
            "  fix: a folder that all processes can write to, and values that can be pickled"
        ) from error


def _check_written(beside: Path, tensors: Mapping[tuple[object, ...], Tensor], *, copies: bool) -> list[str]:
    """Read again what this process wrote, and compare it; the names of its tensors.

    Raises:
        CorruptCheckpoint: something else is there.
    """
    root = read_distributed(beside).root
    wrong = [_name(key) for key, tensor in tensors.items() if not _is_there(root, key, tensor, copies=copies)]
    if wrong:
        raise CorruptCheckpoint(
            f"{beside.name} does not hold what was written: {name_some(wrong)}\n"
            "  fix: write when nothing else writes to the tensors or to the folder"
        )
    return [_name(key) for key in tensors]


def _is_there(root: object, key: tuple[object, ...], tensor: Tensor, *, copies: bool) -> bool:
    found = root
    for each in key:
        inner = cast("Mapping[object, object]", found) if isinstance(found, Mapping) else {}
        found = inner.get(each, inner.get(str(each)))
    if not isinstance(found, ShardedTensor) or (found.shape, found.dtype) != (tuple(tensor.shape), tensor.dtype):
        return False
    part = part_of(tensor)
    if part is None:  # which of the processes wrote it is torch's choice
        return not copies or found.digest() == digest(own_part(tensor))
    if 0 in part[1]:
        return True
    mine = [shard for shard in found.shards if (shard.offsets, shard.sizes) == part]
    return bool(mine) and mine[0].open().digest() == digest(own_part(tensor))


def _give_name(beside: Path, path: Path) -> None:
    with told(path, 0, _KEPT):
        if path.is_dir():
            path.rmdir()  # it is empty
        beside.rename(path)
        sync_folder(path.parent)


def _name(key: tuple[object, ...]) -> str:
    return ".".join(map(str, key))
